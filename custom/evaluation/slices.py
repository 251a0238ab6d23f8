"""Slices of a volume as they are shown, and which of them show most.

Volumes are arrays (X, Y, Z) in RAS order. Slices are shown in radiological convention: the patient's right is on the
left of the picture.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import voxel_sizes


def volume(image: torch.Tensor) -> np.ndarray:
    """Array (X, Y, Z) of a tensor (…, X, Y, Z) whose leading dimensions are 1."""
    tensor = image.as_tensor() if hasattr(image, "as_tensor") else image
    return tensor.detach().float().cpu().numpy().reshape(tensor.shape[-3:])


def spacing_of(image: torch.Tensor) -> tuple[float, float, float]:
    """Voxel size (mm) of a MetaTensor; 1 mm for a plain tensor."""
    affine = getattr(image, "affine", None)
    if affine is None:
        return (1.0, 1.0, 1.0)
    matrix = np.asarray(affine, dtype=float).reshape(-1, 4, 4)[0]
    return tuple(np.linalg.norm(matrix[:3, :3], axis=0).tolist())


def to_ras(image: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Array (X, Y, Z) float32 of ``image`` with its axes turned to the closest RAS, and its voxel size in mm."""
    turned = nib.as_closest_canonical(nib.Nifti1Image(image, affine))
    return turned.get_fdata(dtype=np.float32), tuple(voxel_sizes(turned.affine).tolist())


def axial(image: np.ndarray, index: int) -> np.ndarray:
    """Axial slice as it is shown: anterior up, patient's right on the left."""
    return image[::-1, ::-1, index].T


def sagittal(image: np.ndarray, index: int) -> np.ndarray:
    """Sagittal slice as it is shown: superior up, anterior on the left."""
    return image[index, ::-1, ::-1].T


def slice_position(brain: np.ndarray, lesion: np.ndarray | None = None) -> tuple[int, int, int]:
    """Voxel (x, y, z) whose slices show most: of the lesion where there is one, else about the middle of the brain.

    Args:
        brain: mask (X, Y, Z).
        lesion: mask (X, Y, Z), or None.
    """
    if lesion is not None and lesion.any():
        x, y, z = (int(np.argmax(lesion.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3))
        return x, y, z
    middle = []
    for axis, part in enumerate((0.5, 0.5, 0.55)):
        inside = np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (inside[0], inside[-1]) if inside.size else (0, brain.shape[axis] - 1)
        middle.append(round(low + part * (high - low)))
    return middle[0], middle[1], middle[2]
