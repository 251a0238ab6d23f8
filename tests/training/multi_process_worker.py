"""One process of those that tests/test_multi_process.py starts with torchrun: runs bundle configs one after the other.

Usage: ``torchrun --nproc_per_node=2 multi_process_worker.py JOBS REPORT``, where ``JOBS`` is a JSON file with
``[{"config": name, "run_id": id, "overrides": {...}}, ...]``. Each process leaves in the folder ``REPORT`` the state of
its networks after each job (``<config>_rank<r>.pt``) and what it opened for writing (``writes_rank<r>.json``). The last
job is one that fails: its error ends the process after all this is written.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
writes: list[str] = []


def record_writes(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITING:
        # a folder is opened for a file without a name, by which every process finds out whether it can write there
        writes.extend([] if os.path.isdir(arguments[0]) else [arguments[0]])
    elif event in ("os.mkdir", "os.rename"):
        writes.append(str(arguments[1 if event == "os.rename" else 0]))


def run(job: dict[str, Any], report: Path) -> None:
    files = [str(CONFIGS / f"{name}.json") for name in (job["config"], "multi_gpu")]
    workflow = ConfigWorkflow(
        files, logging_file=False, workflow_type="train", run_id=job["run_id"], **job["overrides"]
    )
    workflow.initialize()
    workflow.run()
    parser = workflow.parser
    state = {"network": parser.get_parsed_content("network").state_dict()}
    if "discriminator" in parser.get():
        state["discriminator"] = parser.get_parsed_content("discriminator").state_dict()
    if "ema" in parser.get():
        state["ema"] = parser.get_parsed_content("ema").ema_model.state_dict()
    if "train" in parser.get():
        state["dataset_length"] = len(parser.get_parsed_content("train#dataset"))
        batch = parser.get_parsed_content("train#trainer").state.batch
        item = batch[0] if isinstance(batch, list) else batch  # MONAI decollates
        tensors = {key: value for key, value in item.items() if isinstance(value, torch.Tensor)}
        state["last_batch"] = {key: value.as_subclass(torch.Tensor).clone() for key, value in tensors.items()}
        state["metric"] = parser.get_parsed_content("validate#evaluator").state.metrics["brain_psnr"]
    else:
        state["metric"] = parser.get_parsed_content("evaluator").state.metrics["brain_psnr"]
    state["random"] = torch.rand(4)
    torch.save(state, report / f"{job['config']}_rank{os.environ['RANK']}.pt")


def main() -> None:
    jobs, report = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    sys.addaudithook(record_writes)
    # one process group serves all jobs
    for job in jobs[:-1]:
        run(job, report)
    path = report / f"writes_rank{os.environ['RANK']}.json"
    path.write_text(json.dumps(writes))
    run(jobs[-1], report)


if __name__ == "__main__":
    main()
