"""Fixtures of data sets whose modalities look different, as brains do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom.modalities import BRATS_MODALITIES

# fluid, grey matter, white matter
CONTRASTS = {"t1": (100, 400, 600), "t1ce": (120, 520, 560), "t2": (900, 500, 300), "flair": (100, 620, 380)}
CONTRASTS |= {"pd": (700, 800, 500), "ct": (20, 40, 35)}
SPACING = np.diag([4.0, 4.0, 4.0, 1.0])


def make_brain(modality: str, seed: int = 0, shape: tuple[int, int, int] = (24, 28, 22)) -> np.ndarray:
    """A "brain" (X, Y, Z) int16 on a zero background: ventricles, white matter, cortex, each its own for every seed."""
    draw = np.random.default_rng(seed)
    radii, ventricle, cortex = draw.uniform(0.8, 0.95, 3), draw.uniform(0.3, 0.45), draw.uniform(0.7, 0.8)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    distance = np.sqrt(sum((g / r) ** 2 for g, r in zip(grid, radii, strict=True)))
    fluid, grey, white = CONTRASTS[modality]
    image = np.select([distance < ventricle, distance < cortex, distance < 0.93], [fluid, white, grey], fluid)
    noise = np.random.default_rng([seed, list(CONTRASTS).index(modality)]).normal(1, 0.08, shape)
    scale = draw.uniform(0.7, 1.5)
    return np.where(distance < 1, np.maximum(image * noise * scale, 1), 0).astype(np.int16)


def save_brain(path: Path, modality: str, seed: int) -> Path:
    """Write a :func:`make_brain` with voxels of 4 mm as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(make_brain(modality, seed), SPACING), path)
    return path


@pytest.fixture
def brain() -> Callable[..., np.ndarray]:
    """See :func:`make_brain`."""
    return make_brain


@pytest.fixture
def cohort(tmp_path: Path) -> Callable[..., Path]:
    """``cohort(6, "{subject}/{subject}_{modality}.nii.gz", modalities)`` → folder; subjects s00, s01, ..."""

    def make(
        count: int = 6,
        pattern: str = "{subject}/{subject}_{modality}.nii.gz",
        modalities: Sequence[str] = BRATS_MODALITIES,
        subject: str = "s{:02d}",
    ) -> Path:
        root = tmp_path / "cohort"
        for seed in range(count):
            for modality in modalities:
                save_brain(root / pattern.format(subject=subject.format(seed), modality=modality), modality, seed)
        return root

    return make
