"""Fixtures shared by all tests: small volumes, data sets and networks made on the spot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.modalities import BRATS_MODALITIES
from custom.networks import VQGAN, ConditionalUNet, LatentTranslator, NoiseSchedule, StyleTransfer

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
RAS = np.diag([2.0, 2.0, 2.0, 1.0])


def make_head(shape: tuple[int, int, int] = (30, 34, 26), seed: int = 0) -> np.ndarray:
    """A skull-stripped "head": an ellipsoid of textured positive values on an exactly zero background, float32."""
    grid = np.meshgrid(*(np.linspace(-1.25, 1.25, n) for n in shape), indexing="ij")
    inside = sum(g**2 for g in grid) < 1
    texture = np.random.default_rng(seed).uniform(100, 900, shape)
    return np.where(inside, texture, 0).astype(np.float32)


@pytest.fixture
def head() -> Callable[..., np.ndarray]:
    """See :func:`make_head`."""
    return make_head


@pytest.fixture
def shared_data() -> Path:
    """The folder of real scans beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real scans are not here: {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def write_volume(tmp_path: Path) -> Callable[..., Path]:
    """``write_volume(name, data=make_head(), affine=RAS, qform=1, sform=1)`` → path of a NIfTI file."""

    def write(
        name: str, data: np.ndarray | None = None, affine: np.ndarray = RAS, *, qform: int = 1, sform: int = 1
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(make_head() if data is None else data, affine)
        image.set_qform(affine, qform)
        image.set_sform(affine, sform)
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def brats_folder(tmp_path: Path) -> Callable[..., Path]:
    """``brats_folder({"a": ("t1", "t2")}, name="brats")`` → folder in the BraTS 2021 layout, small volumes."""

    def make(subjects: dict[str, tuple[str, ...]], name: str = "brats") -> Path:
        root = tmp_path / name
        root.mkdir()
        for number, (subject, suffixes) in enumerate(subjects.items()):
            (root / subject).mkdir()
            for position, suffix in enumerate(suffixes):
                image = nib.Nifti1Image(make_head(seed=10 * number + position), RAS)
                nib.save(image, root / subject / f"{subject}_{suffix}.nii.gz")
        return root

    return make


def make_tiny_translator(num_modalities: int = len(BRATS_MODALITIES)) -> LatentTranslator:
    """A ``LatentTranslator`` of a few thousand parameters with the small preset's structure, untrained."""
    torch.manual_seed(0)
    latent_channels = 4
    return LatentTranslator(
        num_modalities,
        VQGAN([8, 8], latent_channels, 32, num_res_blocks=[1, 1], norm_num_groups=4, haar_levels=1),
        StyleTransfer(
            num_modalities, latent_channels, in_channels=8, res_channels=[8], spade_channels=[8], hidden_channels=4
        ),
        ConditionalUNet(
            2 * latent_channels,
            latent_channels,
            num_modalities,
            channels=[8, 8, 8],
            attention_levels=[False, False, True],
            num_heads=2,
            norm_num_groups=4,
        ),
        NoiseSchedule(),
        num_inference_steps=2,
    ).eval()


@pytest.fixture(scope="session")
def tiny_translator() -> LatentTranslator:
    """See :func:`make_tiny_translator`; do not change it in a test."""
    return make_tiny_translator()


# an editable install adds a finder for `custom`; without it only a bundle's own copy can be found
_WITHOUT_REPOSITORY = f"""
import runpy, sys
marked = lambda finder: "__editable__" in getattr(finder, "__module__", "") + getattr(finder, "__name__", "")
sys.meta_path[:] = [finder for finder in sys.meta_path if not marked(finder)]
sys.path[:] = [path for path in sys.path if path not in ({str(REPOSITORY)!r}, "")]
sys.argv[:] = sys.argv[1:]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
run(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def elsewhere() -> Callable[..., str]:
    """``elsewhere("monai.bundle", "run", ...)`` or ``elsewhere("script.py", ...)`` → what it printed.

    Python runs it from ``/`` and without the repository's ``custom``. ``expect`` is the exit status; where it is not 0
    the result is the standard error. ``pythonpath`` is the one folder that is put on the path.
    """

    def run(*command: str | os.PathLike, expect: int = 0, pythonpath: str | os.PathLike = "") -> str:
        result = subprocess.run(
            [sys.executable, "-P", "-c", _WITHOUT_REPOSITORY, *map(str, command)],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "PYTHONPATH": str(pythonpath)},
            check=False,
        )
        assert result.returncode == expect, result.stdout[-2000:] + result.stderr[-4000:]
        return result.stdout if expect == 0 else result.stderr

    return run
