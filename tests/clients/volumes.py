"""Comparisons of volumes that clients return."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from harness import expect

__all__ = ["check_grid", "check_translation", "difference", "in_ras"]

# A grid that ITK has written or a DICOM series holds, against NIfTI's: single precision of some hundred mm.
GRID_TOLERANCE = 1e-3  # mm


def check_translation(image: nib.Nifti1Image) -> str:
    """A float32 image within [0, 1] that shows something; says its range."""
    kind, values = image.get_data_dtype(), image.get_fdata(dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    expect(kind == np.float32, f"expected float32; found {kind}")
    expect(0 <= low < high <= 1, f"expected values within [0, 1]; found {low:.3g} to {high:.3g}")
    return f"{low:.3g} to {high:.3g}"


def check_grid(image: nib.Nifti1Image, affine: np.ndarray, shape: tuple[int, ...]) -> None:
    """The same shape, and the volume's corners in the same places."""
    expect(image.shape == tuple(shape), f"expected the shape {tuple(shape)}; found {image.shape}")
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in shape)), -1).reshape(-1, 3)
    moved = float(np.abs(nib.affines.apply_affine(image.affine - affine, corners)).max())
    expect(moved <= GRID_TOLERANCE, f"corners moved by {moved:.3g} mm")


def difference(first: nib.Nifti1Image, second: nib.Nifti1Image) -> float:
    """Largest absolute difference of two volumes of one shape."""
    values = first.get_fdata(dtype=np.float32), second.get_fdata(dtype=np.float32)
    expect(values[0].shape == values[1].shape, f"shapes differ: {values[0].shape}, {values[1].shape}")
    return float(np.abs(values[0] - values[1]).max())


def in_ras(path: Path) -> nib.Nifti1Image:
    """A volume with its axes turned to right, anterior, superior, nothing resampled."""
    return nib.as_closest_canonical(nib.load(path))
