"""Foreground of a scan, its tissue: the one definition that crops, masks, metrics and baselines share.

The mask is made once, from the scan as it was read (``custom.data.transforms.CropForegroundUniond``), and goes with
the image from there on, under :func:`foreground_key`. It cannot be found again later: padding and clipping change what
the background looks like.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms.utils_pytorch_numpy_unification import percentile
from scipy import ndimage

__all__ = ["BACKGROUND", "foreground", "foreground_key", "solid"]

BACKGROUND = -1.0  # of preprocessed images, whose range is [-1, 1]

ZERO_BACKGROUND_SHARE = 0.05
SIGNED_SHARE = 0.05
NOISE_FLOOR = 0.05


def foreground_key(key: str) -> str:
    """Under which the mask of the image ``key`` goes with it: boolean, of the image's shape, cavities filled."""
    return f"{key}_foreground"


def foreground(image: torch.Tensor) -> torch.Tensor:
    """Voxels that show tissue.

    Where a good part of the volume (5 %) is exactly zero, zero is the background: the foreground is what is positive,
    so that the slightly negative voxels that interpolation leaves around a brain do not count; in signed data (such as
    z-scores) it is what is not zero. Otherwise the background is noise or an offset, and the foreground is what lies
    above 5 % of the range between the percentiles 0.5 and 99.5.

    Args:
        image: a volume of any shape, in the scanner's units.

    Returns:
        Boolean mask of the same shape.
    """
    values = image.as_tensor() if isinstance(image, MetaTensor) else image
    zeros = values == 0
    if zeros.float().mean() >= ZERO_BACKGROUND_SHARE:
        negative = values < 0
        signed = negative.sum() > SIGNED_SHARE * (~zeros).sum()
        return ~zeros if signed else values > 0
    low, high = percentile(values, 0.5), percentile(values, 99.5)
    return values > torch.as_tensor(low + NOISE_FLOOR * (high - low))


def solid(mask: torch.Tensor) -> torch.Tensor:
    """``mask`` (1, H, W, D) with its cavities filled: all but the background that reaches a face of the volume.

    Voxels inside a brain that are zero or slightly negative belong to it; the air around it does not.
    """
    background, _ = ndimage.label(~mask[0].cpu().numpy())
    faces = [background.take(i, axis=axis) for axis in range(background.ndim) for i in (0, -1)]
    outside = np.zeros(background.max() + 1, dtype=bool)
    for face in faces:
        outside[np.unique(face)] = True
    outside[0] = False  # label 0 is the foreground itself
    return torch.from_numpy(~outside[background])[None].to(mask.device)
