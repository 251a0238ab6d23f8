"""Whether two volumes lie on one grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

__all__ = ["describe_grid", "same_grid"]

CORNER_MM = 0.5  # corners of two grids that are closer lie on one grid: half a voxel of the usual scans


def same_grid(shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray) -> bool:
    """Whether the corners of two volumes lie in the same places.

    Args:
        shape, other_shape: voxels.
        affine, other_affine: (4, 4), voxel to mm.
    """
    if tuple(shape) != tuple(other_shape):
        return False
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape))]) @ np.eye(3, 4) + np.eye(4)[3]
    return bool(np.abs(corners @ (np.asarray(affine) - np.asarray(other_affine)).T).max() <= CORNER_MM)


def describe_grid(shape: Sequence[int], affine: np.ndarray) -> str:
    """A grid for a message: size, spacing and place of the first voxel."""
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    size, mm = "×".join(map(str, shape)), "×".join(f"{s:.3g}" for s in spacing)
    return f"{size} voxels of {mm} mm from ({', '.join(f'{v:.1f}' for v in np.asarray(affine)[:3, 3])})"
