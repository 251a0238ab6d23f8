"""Files checked a second by ``python -m custom prepare``, beside plain nibabel reading with as many processes.

    python benchmarks/preparation.py --files 24 --processes 2 --rounds 5 [--source FOLDER]

Both read the same files in turns, so what else the machine does meets both. Without ``--source`` (a folder of
``.nii.gz``) the files are a phantom of BraTS's size.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch

from custom.data.phantom.dataset import write_dataset
from custom.preparation.prepare import check_all


def read_plainly(path: str) -> int:
    """Voxels of a file, read as nibabel is used."""
    return np.asanyarray(nib.load(path).dataobj).size


def plain(files: Sequence[str], processes: int) -> None:
    context = get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        list(pool.map(read_plainly, files, chunksize=4))


def checked(files: Sequence[str], processes: int) -> None:
    faults = [c for c in check_all([(f, False) for f in files], processes, progress=False) if c.fault]
    if faults:
        raise ValueError(f"{faults[0].path}: expected files without a fault; found {faults[0].fault}.")


def seconds(task: Callable[[], None]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def main(files: int = 24, processes: int = 2, rounds: int = 5, source: str | None = None) -> None:
    """Print both rates and their ratio, of each round and the median.

    Args:
        files: how many copies to read.
        processes: that read.
        rounds: measurements of each.
        source: folder that is searched for ``.nii.gz`` files to copy.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            write_dataset(Path(folder) / "phantom", 1, progress=False)
        originals = [p for p in sorted(Path(source or folder).rglob("*.nii.gz")) if not p.name.endswith("_seg.nii.gz")]
        copies = [Path(folder) / f"copy-{i:04d}.nii.gz" for i in range(files)]
        for i, copy in enumerate(copies):
            shutil.copy(originals[i % len(originals)], copy)
        names = [str(copy) for copy in copies]
        plain(names, processes)  # once unmeasured
        checked(names, processes)
        ratios = []
        for number in range(rounds):
            reading = seconds(lambda: plain(names, processes))
            checking = seconds(lambda: checked(names, processes))
            ratios.append(reading / checking)
            print(
                f"round {number + 1}: nibabel {files / reading:.1f} files/s, checks {files / checking:.1f} files/s, "
                f"ratio {ratios[-1]:.2f}",
                flush=True,
            )
    print(f"{processes} processes, {files} files: median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    fire.Fire(main)
