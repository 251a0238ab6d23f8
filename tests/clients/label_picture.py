"""A picture to look at: source, served and command line's translation, their difference, and another target."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib
import nibabel as nib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["Row", "draw"]

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
INCHES = 2.4


class Row(NamedTuple):
    """Volumes of one study, all on one grid."""

    name: str
    source: nib.Nifti1Image
    served: nib.Nifti1Image
    expected: nib.Nifti1Image
    other: nib.Nifti1Image
    target: str
    other_target: str


def draw(rows: list[Row], path: Path) -> None:
    """Write the middle slices of each study's volumes, one row a plane, as PNG."""
    lines = [(row, plane, axis) for row in rows for plane, axis in PLANES.items()]
    figure, axes = plt.subplots(
        len(lines), 5, figsize=(5 * INCHES, len(lines) * INCHES), squeeze=False, layout="constrained"
    )
    for line, (row, plane, axis) in zip(axes, lines, strict=True):
        source, served, expected, other = (
            _middle(image, axis) for image in (row.source, row.served, row.expected, row.other)
        )
        largest = float(np.percentile(source, 99.5)) or 1.0
        panels = {
            f"{row.name}, {plane}": (source, largest),
            f"served {row.target}": (served, 1.0),
            f"command line {row.target}": (expected, 1.0),
            f"|difference|, max {np.abs(served - expected).max():.2g}": (np.abs(served - expected), 1e-5),
            f"served {row.other_target}": (other, 1.0),
        }
        for ax, (title, (values, top)) in zip(line, panels.items(), strict=True):
            ax.imshow(values, cmap="gray", vmin=0, vmax=top)
            ax.set_title(title, fontsize=8)
            ax.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _middle(image: nib.Nifti1Image, axis: int) -> np.ndarray:
    """The middle slice across an anatomical axis, superior or anterior up."""
    values = nib.as_closest_canonical(image).get_fdata(dtype=np.float32)
    return np.rot90(values.take(values.shape[axis] // 2, axis=axis))
