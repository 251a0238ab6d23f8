"""The overlay multi_gpu.json: two processes train and evaluate as one does, and only the first writes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from custom.data.datalist import write_datalist
from custom.utils.distributed import share_of_rank
from custom.utils.modalities import BRATS_MODALITIES

TESTS = Path(__file__).resolve().parent
CONFIGS = TESTS.parents[1] / "bundle" / "configs"
CPU = "$torch.device('cpu')"
STAGES = {"train_autoencoder": "autoencoder", "train_spade": "spade", "train": "diffusion"}
TINY = {
    "amp": "false",
    "network_def#autoencoder#channels": [8],
    "network_def#autoencoder#bottleneck#num_embeddings": 64,
    "network_def#autoencoder#bottleneck#num_codebooks": 2,  # one is the same with fewer indices
    # half of the 64 codes are dead in a step that sees few voxels, so that revival is part of the comparison
    "network_def#autoencoder#bottleneck#revival_threshold": 0.995,
    "network_def#style_transfer#width": 8,
    "network_def#style_transfer#num_blocks": 1,
    "network_def#style_transfer#hidden_channels": 4,
    "network_def#detail#width": 8,
    "network_def#unet#channels": [8, 8, 8],
    "network_def#unet#norm_num_groups": 4,
}
QUICK = {"max_epochs": 1, "val_interval": 1, "cache_workers": 0, "warmup_steps": 1}
OF_STAGE = {
    "train_autoencoder": {
        "crop_size": [16, 16, 16], "crops_per_subject": 1, "batch_size": 1, "adversarial_start_epoch": 0,
        "discriminator_def#channels": 4, "discriminator_def#num_layers_d": 1,
    },
    "train_spade": {
        "latent_crop": [8, 8, 8], "subjects_per_batch": 1, "adversarial_start_epoch": 0,
        "objective#latent#part_size": 4, "discriminator_def#channels": 4, "accumulation_steps": 2,
    },
    "train": {"latent_crop": [4, 4, 4], "subjects_per_batch": 1, "part_size": 4, "gradient_checkpointing": "true"},
}  # fmt: skip
EVALUATION = {"pairs": [["t1", "t2"]], "num_figures": 1}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:Default metadata file:UserWarning"),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of torch has no gloo"),
]


def write_subject(folder: Path, subject: str, names: tuple[str, ...], seed: int) -> dict[str, str]:
    """A subject of textured ellipsoids of its own size, as a datalist entry."""
    shape = (26 + 2 * seed % 7, 30, 26)
    grid = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")
    inside = sum(g**2 for g in grid) < 1
    entry = {"subject": subject}
    for position, name in enumerate(names):
        texture = np.random.default_rng(10 * seed + position).uniform(100, 900, shape)
        path = folder / f"{subject}_{name}.nii.gz"
        nib.save(nib.Nifti1Image(np.where(inside, texture, 0).astype(np.float32), np.eye(4)), path)
        entry[name] = str(path)
    return entry


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd numbers of everything, so that shares differ; the last test subject's file is broken."""
    folder = tmp_path_factory.mktemp("data")
    split = {
        "training": [write_subject(folder, f"a{n}", BRATS_MODALITIES, n) for n in range(3)],
        "validation": [write_subject(folder, "b0", ("t1", "t2", "flair"), 4)],
        "test": [write_subject(folder, f"c{n}", ("t1", "t2"), 5 + n) for n in range(4)],
    }
    Path(split["test"][-1]["t2"]).write_bytes(b"no volume")
    write_datalist(folder / "datalist.json", split, BRATS_MODALITIES)
    return folder


def overrides(config: str, data: Path, output: Path) -> dict[str, Any]:
    values = {"bundle_root": str(CONFIGS.parent), "dataset_dir": str(data), "ckpt_path": str(output / "model.pt")}
    if config == "evaluate":
        return {**values, **TINY, **EVALUATION, "output_dir": str(output / "evaluation")}
    return {**values, **TINY, **QUICK, **OF_STAGE[config], "output_dir": str(output)}


def torchrun(*arguments: str) -> tuple[int, str]:
    """Status and errors of two processes; their time is bounded, so one that waits for ever fails, and none is left."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=CONFIGS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _, errors = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, errors


class Ranks(NamedTuple):
    """What two processes left behind: their states by job, their writes, the folder of outputs, and how they ended."""

    states: dict[str, list[dict[str, Any]]]
    writes: list[list[str]]
    output: Path
    status: int
    errors: str


@pytest.fixture(scope="module")
def ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """One epoch of each stage, an evaluation and a training that fails, one after the other, in two processes."""
    output, report = tmp_path_factory.mktemp("output"), tmp_path_factory.mktemp("report")
    run_ids = {**dict.fromkeys(STAGES, "training"), "evaluate": "evaluating"}
    jobs = [
        {"config": name, "run_id": run_id, "overrides": overrides(name, data, output)}
        for name, run_id in run_ids.items()
    ]
    failing = overrides("train_autoencoder", with_a_broken_subject(data, report / "broken"), report / "failed")
    jobs.append({"config": "train_autoencoder", "run_id": "training", "overrides": failing})
    (report / "jobs.json").write_text(json.dumps(jobs))
    status, errors = torchrun(str(TESTS / "multi_process_worker.py"), str(report / "jobs.json"), str(report))
    assert all((report / f"writes_rank{r}.json").is_file() for r in range(2)), errors[-4000:]
    states = {
        name: [torch.load(report / f"{name}_rank{r}.pt", weights_only=True) for r in range(2)] for name in run_ids
    }
    writes = [json.loads((report / f"writes_rank{r}.json").read_text()) for r in range(2)]
    kept = [[w for w in all_ if w.startswith(str(output))] for all_ in writes]
    assert not list((report / "failed").rglob("*.pt"))
    return Ranks(states, kept, output, status, errors)


def with_a_broken_subject(data: Path, folder: Path) -> Path:
    """A data set like ``data``, but the second of the training's subjects, the other process's, is broken."""
    folder.mkdir()
    content = json.loads((data / "datalist.json").read_text())
    (folder / "a1_broken.nii.gz").write_bytes(b"no volume")
    for section in ("training", "validation", "test"):
        for entry in content[section]:
            entry.update({k: str(data / v) for k, v in entry.items() if k != "subject"})
    content["training"][1]["t1"] = str(folder / "a1_broken.nii.gz")
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in a process of torchrun: sums of more threads have another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def one_process(config: str, data: Path, output: Path, **changes: Any) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        str(CONFIGS / f"{config}.json"), logging_file=False, workflow_type="train",
        run_id="evaluating" if config == "evaluate" else "training",
        **{**overrides(config, data, output), "device": CPU, **changes},
    )  # fmt: skip
    workflow.initialize()
    return workflow


@pytest.mark.parametrize("config", STAGES)
def test_ranks_end_with_identical_networks(ranks: Ranks, config: str) -> None:
    first, second = ranks.states[config]
    for name in {"network", "discriminator", "ema"} & set(first):
        assert set(first[name]) == set(second[name])
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key]), f"{name}: {key}"


def test_codebook_is_alive_and_identical(ranks: Ranks) -> None:
    first, second = (state["network"] for state in ranks.states["train_autoencoder"])
    codes = "autoencoder.bottleneck.embedding.weight"
    assert torch.equal(first[codes], second[codes])
    assert first["autoencoder.bottleneck.initialized"]
    assert len(first[codes].unique(dim=0)) > 1


@pytest.mark.parametrize("config", STAGES)
def test_ranks_draw_differently_for_equally_many_steps(ranks: Ranks, config: str) -> None:
    first, second = ranks.states[config]
    assert not torch.equal(first["random"], second["random"])
    assert first["dataset_length"] == second["dataset_length"] == 2  # of three subjects
    key = "image" if config == "train_autoencoder" else "source"
    assert not torch.equal(first["last_batch"][key], second["last_batch"][key])


def test_only_the_first_rank_writes(ranks: Ranks) -> None:
    # digests of files are appended by every rank to one memory
    shared = tuple(str(ranks.output / name) for name in ("latents", "evaluation/subjects", "evaluation/files.jsonl"))
    folder = str(ranks.output / "evaluation")
    first, second = ([w for w in writes if w != folder and not w.startswith(shared)] for writes in ranks.writes)
    assert second == []
    for name in ("best.pt", "last.pt"):
        for folder in STAGES.values():
            assert first.count(str(ranks.output / folder / name)) == 1
    assert first.count(str(ranks.output / "model.pt")) == 1
    for folder in STAGES.values():
        with (ranks.output / folder / "losses.csv").open(newline="") as file:
            logged = [(row["epoch"], row["name"]) for row in csv.DictReader(file)]
        assert len(logged) == len(set(logged)) > 2


def test_each_process_keeps_the_results_of_its_own_subjects(ranks: Ranks) -> None:
    """So that an interrupted evaluation loses no process's work; the fourth subject is broken."""
    subjects = ranks.output / "evaluation" / "subjects"
    kept = [{p.name for p in map(Path, writes) if p.parent == subjects and p.name[0] != "."} for writes in ranks.writes]
    assert kept == [{"c0.json", "c0.npz", "c2.json", "c2.npz"}, {"c1.json", "c1.npz"}]


def test_each_subject_is_encoded_once_for_both_stages(ranks: Ranks) -> None:
    """Each process its own share of the three subjects."""
    encoded = [[w for w in writes if w.endswith(".npy") and "/." not in w] for writes in ranks.writes]
    images = [[w for w in writes if w.endswith("_images.npy")] for writes in encoded]
    assert [len(writes) for writes in images] == [2, 1]
    assert [len(writes) for writes in encoded] == [4, 2]  # the images are kept beside the latents
    files = list((ranks.output / "latents").rglob("*.npy"))
    assert {*encoded[0], *encoded[1]} == {str(f) for f in files}


def test_latent_scale_is_that_of_one_process(ranks: Ranks, data: Path, tmp_path: Path, one_thread: None) -> None:
    spade = str(ranks.output / "spade" / "best.pt")
    workflow = one_process("train", data, tmp_path, spade_path=spade)
    steps = [step.get("_target_") if isinstance(step, dict) else None for step in workflow.parser["run"]]
    measuring = steps.index("custom.training.latents.pairs.measure_latent_scale")
    workflow.parser.get_parsed_content(f"run#{measuring}")
    expected = workflow.parser.get_parsed_content("network").latent_scale
    for state in ranks.states["train"]:
        # the sums are in double precision, in another order
        torch.testing.assert_close(state["network"]["latent_scale"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("config", STAGES)
def test_validation_equals_one_process(ranks: Ranks, data: Path, tmp_path: Path, one_thread: None, config: str) -> None:
    stage = STAGES[config]
    weights = torch.load(ranks.output / stage / "best.pt", weights_only=True)
    changes = {"autoencoder_path": str(ranks.output / "autoencoder" / "best.pt")} if config == "train_spade" else {}
    changes |= {"spade_path": str(ranks.output / "spade" / "best.pt")} if config == "train" else {}
    workflow = one_process(config, data, tmp_path, **changes)
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.network.load_state_dict(weights)
    evaluator.run()
    assert len(evaluator.data_loader) == 3
    for state in ranks.states[config]:
        # the mean of three numbers in single precision, in another order
        assert state["metric"] == pytest.approx(evaluator.state.metrics["brain_psnr"], rel=1e-6)


def test_evaluation_equals_one_process(ranks: Ranks, data: Path, tmp_path: Path, one_thread: None) -> None:
    (tmp_path / "model.pt").write_bytes((ranks.output / "model.pt").read_bytes())
    workflow = one_process("evaluate", data, tmp_path)
    hook = sys.excepthook
    workflow.run()
    sys.excepthook = hook
    for name in ("per_subject.csv", "report.txt"):
        together, alone = ((folder / "evaluation" / name).read_text() for folder in (ranks.output, tmp_path))
        # the table of seconds and memory comes last
        assert together.partition("Cost of one volume")[0] == alone.partition("Cost of one volume")[0]
    assert "Subjects evaluated: 3." in together
    assert "c3" in together  # the broken one is named
    metric = workflow.parser.get_parsed_content("evaluator").state.metrics["brain_psnr"]
    assert [state["metric"] for state in ranks.states["evaluate"]] == [metric, metric]


def test_a_failing_subject_ends_all_processes(ranks: Ranks) -> None:
    assert ranks.status != 0
    assert "a1_broken.nii.gz" in ranks.errors


def test_shares_without_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom.utils.distributed.world_size", lambda: 3)
    shares = []
    for number in range(3):
        monkeypatch.setattr("custom.utils.distributed.rank", lambda number=number: number)
        shares.append((share_of_rank("abcde"), share_of_rank("abcde", even=True)))
    assert [share for share, _ in shares] == [["a", "d"], ["b", "e"], ["c"]]
    assert [share for _, share in shares] == [["a", "d"], ["b", "e"], ["c", "a"]]
    with pytest.raises(ValueError, match="no more than 2 processes"):
        share_of_rank("ab")
