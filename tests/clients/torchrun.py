"""Two processes on the CPU by ``torchrun``, with the overlay ``multi_gpu.json``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
from bundle_commands import QUICK, STAGES
from harness import Check, Context, expect
from volumes import difference

__all__ = ["run"]


def run(context: Context) -> Iterator[Check]:
    """The three stages, evaluation, and files shared by two processes."""
    check = partial(context.check, "torchrun")
    bundle = context.unpack(context.room("torchrun"))
    alone = context.room("torchrun") / "alone"
    yield check("inference equals one process", lambda: _inference(context, bundle, alone))
    for stage, folder in (("train_autoencoder", "autoencoder"), ("train_spade", "spade"), ("train", "diffusion")):
        yield check(f"training, {stage}", lambda stage=stage, folder=folder: _train(context, bundle, stage, folder))
    yield check("evaluating", lambda: _evaluate(context, bundle))


def _torchrun(context: Context, bundle: Path, run_id: str, config: str, **options: Any) -> None:
    files = [str(bundle / "configs" / f"{name}.json") for name in (config, "multi_gpu")]
    flags = [part for key, value in options.items() for part in (f"--{key}", value)]
    context.python(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run", run_id,
        "--config_file", str(files), *flags, OMP_NUM_THREADS="1",
    )  # fmt: skip


def _inference(context: Context, bundle: Path, alone: Path) -> str:
    images, options = context.room("two_subjects"), {"targets": ["t2"]}
    for scan in (context.scans.las, context.scans.lps):
        shutil.copy(scan, images)
    _torchrun(context, bundle, "inference", "inference", image=images, output_dir=bundle / "output/both", **options)
    context.python(
        "-m", "monai.bundle", "run", "inference", "--config_file", bundle / "configs/inference.json",
        "--image", images, "--output_dir", alone, "--targets", options["targets"], OMP_NUM_THREADS="1",
    )  # fmt: skip
    together = sorted((bundle / "output/both").glob("*.nii.gz"))
    expect(len(together) == 2, f"results: {[path.name for path in together]}")
    gap = max(difference(nib.load(path), nib.load(alone / path.name)) for path in together)
    expect(gap == 0, f"{gap:.3g} apart")
    return "the same voxels"


def _train(context: Context, bundle: Path, stage: str, folder: str) -> None:
    _torchrun(context, bundle, "training", stage, dataset_dir=context.phantoms, **QUICK, **STAGES[stage])
    for name in ("best.pt", "last.pt"):
        expect((bundle / "output" / folder / name).is_file(), f"no {folder}/{name}")


def _evaluate(context: Context, bundle: Path) -> None:
    _torchrun(context, bundle, "evaluating", "evaluate", dataset_dir=context.phantoms, pairs=[["t1", "t2"]])
    reports = [path.name for path in (bundle / "output").rglob("report.html")]
    expect(reports == ["report.html"], f"reports: {reports}")
