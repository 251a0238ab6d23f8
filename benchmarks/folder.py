"""A folder of subjects through ``inference.json``: seconds for one more, and what a second process brings."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.launch import run_bundle
from benchmarks.subject import write_head

__all__ = ["Folder", "measure_folder"]


class Folder(NamedTuple):
    """Seconds for each further file with one process and with two on the same cores, and files per hour."""

    files: int
    size: tuple[int, ...]
    seconds: float
    seconds_two_processes: float
    subjects_per_hour: float


def measure_folder(size: tuple[int, int, int], *, device: str, files: int = 3) -> Folder:
    """Translate a folder with ``files`` heads and one with a single head; the difference is the time of the others.

    The shipped weights are used. Two processes share the cores evenly.
    """
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        first = write_head(root / "head.nii.gz", size)
        for count in (1, files, 2, 2 * files):
            folder = root / f"in{count}"
            folder.mkdir(exist_ok=True)
            for number in range(count):
                shutil.copy(first, folder / f"head{number}.nii.gz")
        one = [_run(root / f"in{count}", root / f"out{count}", device) for count in (1, files)]
        two = [_run(root / f"in{count}", root / f"shared{count}", device, processes=2) for count in (2, 2 * files)]
    single = (one[1] - one[0]) / (files - 1)
    shared = (two[1] - two[0]) / (2 * files - 2)
    return Folder(files, size, single, shared, 3600 / min(single, shared))


def _run(images: Path, out: Path, device: str, processes: int = 1) -> float:
    arguments = {"image": str(images), "output_dir": str(out)}
    if processes == 1:
        arguments["device"] = f"$torch.device('{device}')"
    return run_bundle("inference", "inference", arguments, processes=processes)
