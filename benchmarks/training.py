"""Training under torchrun: pairs a second of stage 3 in one process and in two that share the cores.

Usage: ``python -m benchmarks.training [--spacing 2] [--subjects 4] [--epochs 4]``. Both sides run the real command on
the same phantoms, from the shipped weights, one after the other; the first epoch, which fills caches, is not counted.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.launch import run_bundle
from custom.data.datalist import ensure_phantom
from custom.utils.bundle import config_folder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.training", description=__doc__)
    parser.add_argument("--spacing", type=float, default=2.0, help="voxel size of the phantoms in mm")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    return parser.parse_args()


def seconds_per_epoch(losses: Path) -> float:
    """Of the epochs behind the first, from the ``losses.csv`` of a training."""
    with losses.open(newline="") as file:
        ends = {int(row["epoch"]): float(row["seconds"]) for row in csv.DictReader(file) if row["name"] == "diffusion"}
    first, last = min(ends), max(ends)
    return (ends[last] - ends[first]) / (last - first)


def main() -> None:
    options = arguments()
    rates: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        data = ensure_phantom(root / "data", counts=(options.subjects, 1, 1), spacing=options.spacing)
        for processes in options.processes:
            out = root / f"out{processes}"
            values = {
                "dataset_dir": str(data), "output_dir": str(out), "cache_dir": str(root / "latents"),
                "ckpt_path": str(out / "model.pt"), "spade_path": str(config_folder().parent / "models" / "model.pt"),
                "max_epochs": str(options.epochs), "val_interval": str(options.epochs + 1), "pairs_per_subject": "2",
                "subjects_per_batch": str(max(1, 2 // processes)), "warmup_steps": "1",
            }  # fmt: skip
            run_bundle("training", "train", values, processes=processes)
            seconds = seconds_per_epoch(out / "diffusion" / "losses.csv")
            rates[processes] = 2 * options.subjects / seconds
    settings = {"device": "cuda" if torch.cuda.is_available() else "cpu", "subjects": options.subjects}
    speedup = rates[options.processes[-1]] / rates[options.processes[0]]
    print(json.dumps({**settings, "pairs_a_second": rates, "speedup": speedup}, indent=1))


if __name__ == "__main__":
    main()
