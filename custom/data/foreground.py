"""Foreground of a scan, its tissue: the one definition that crops, masks, scales, metrics and baselines share.

The mask is made once, from the scan as it was read (``custom.data.transforms.CropForegroundUniond``), and goes with
the image from there on, under :func:`foreground_key`. It cannot be found again later: padding and clipping change what
the background looks like.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage

__all__ = ["BACKGROUND", "foreground", "foreground_key", "levels_of", "rim_of", "solid"]

BACKGROUND = -1.0  # of preprocessed images, whose range is [-1, 1]

SHARED = 0.1  # of the rim's voxels: a value that so many of them have is a level of the background
MAIN_SHARE = 0.5  # of the rim's voxels: more must be at these levels, where the background is constant
LAYERS = 3  # of constant background, one within the other: NaN, what a resampling has filled in, the scan's own
RANGE = (0.5, 95.0)  # percentiles of what is left: the brightest twentieth may be a lesion or vessels
FAINT = 0.05  # of that range
SIGNED_SHARE = 0.01  # of voxels clearly below the background from which on they are tissue, and no ringing at its edge
# real scans: brains have up to 4 % of faint voxels, scans with noise between head and constant background 16 % or more
NOISY_SHARE = 0.08
AIR_SHARE = 0.35  # of voxels near the lowest: more than a brain has of fluid
NOISY_RIM = 0.2  # of the range: what three quarters of the rim keep below, where the rim is noise
UNIFORM = 0.9  # of the rim: what has so much of one value is tissue without noise
NOISE_DEVIATIONS = 4  # above the middle of the rim's noise
LARGEST_THRESHOLD = 0.25  # of the range
SMALL = 0.01  # of the largest piece: what is smaller is noise, too


def foreground_key(key: str) -> str:
    """Under which the mask of the image ``key`` goes with it: boolean, of the image's shape, cavities filled."""
    return f"{key}_foreground"


def foreground(image: torch.Tensor) -> torch.Tensor:
    """Voxels that show tissue; the same for every increasing affine map of the intensities.

    The background is found where the volume ends. NaN and infinite values are background; so are constants, whatever
    their value, that most of the volume's edges have in common. The foreground is then what is above, as interpolation
    leaves slightly lower voxels around a brain; where 1 % are clearly lower (a brain standardised within its mask, its
    background left at 0), it is whatever differs from it. Where faint voxels surround the rest, they are noise, which
    a threshold takes away that follows from their level and spread.

    Args:
        image: a volume (H, W, D) or (1, H, W, D), in any units.

    Returns:
        Boolean mask of the same shape; empty for a constant.
    """
    values = (image.as_tensor() if isinstance(image, MetaTensor) else image).cpu().numpy()
    values = values.reshape(values.shape[-3:])
    inside = np.isfinite(values)
    level: float | None = None  # of a constant background
    for layer in range(LAYERS + 1):
        rim = values[rim_of(inside)]
        levels, shares = levels_of(rim)
        levels, shares = levels[shares >= SHARED], shares[shares >= SHARED]
        if layer > 0 and levels.size:  # an outer layer of tissue may be uniform, but it does not fill most of the head
            levels, shares = levels[:1], np.minimum(shares[:1], (values[inside] == levels[0]).mean())
        if layer == LAYERS or shares.sum() <= MAIN_SHARE:
            break
        others = inside & ~np.isin(values, levels)
        if (layer > 0 and not others.any()) or _are_noise(levels, values[others]):
            break
        inside, level = others, float(levels[0])
    if level is not None and not _is_signed(values[inside], level):
        inside &= values > level
        inside = _without_noise(values, inside, level)
    elif level is None:
        inside = _without_noise(values, inside, None)
    return torch.from_numpy(inside).reshape(image.shape).to(image.device)


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


def rim_of(inside: np.ndarray) -> np.ndarray:
    """The outermost voxels of ``inside``; of the whole volume its edges, as a head may touch the faces."""
    if not inside.all():
        rim = np.zeros_like(inside)
        for box in ndimage.find_objects(inside.view(np.uint8)):
            rim[box] = inside[box] & ~ndimage.binary_erosion(inside[box])
        return rim
    ends = np.zeros(inside.shape, dtype=np.uint8)
    for axis in range(3):
        np.moveaxis(ends, axis, 0)[[0, -1]] += 1
    return ends > 1


def levels_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different values and their shares, the commonest first."""
    found, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return found[order], counts[order] / max(1, values.size)


def _is_signed(others: np.ndarray, level: float) -> bool:
    """Whether much of the ``others`` is clearly below the background."""
    if not others.size:
        return False
    low, high = np.percentile(others, RANGE)
    return bool((others < level - FAINT * (high - low)).mean() >= SIGNED_SHARE)


def _are_noise(levels: np.ndarray, others: np.ndarray) -> bool:
    """Whether several levels of whole numbers are one noise: beside the range of the ``others`` they lie together."""
    if levels.size < 2 or not others.size:
        return False
    low, high = np.percentile(others, RANGE)
    return bool(np.abs(levels - levels[0]).max() < FAINT * (high - low))


def _without_noise(values: np.ndarray, inside: np.ndarray, level: float | None) -> np.ndarray:
    """``inside`` without noise at its rim: above a constant ``level`` around it, or where there is none."""
    if not inside.any():
        return inside
    everywhere = inside.all()  # no background was found yet
    rim = values[rim_of(inside)]
    low, high = np.percentile(values[inside], RANGE)
    middle, upper = np.percentile(rim, (50, 75))
    zero = low if level is None else level
    faint = zero + FAINT * (high - zero)
    dark = upper <= zero + NOISY_RIM * (high - zero) and levels_of(rim)[1][0] <= UNIFORM
    # the fluid around a brain may be as uniform as noise, but it is less of it, and further above the background
    lowest_share = (values[inside] <= low + FAINT * (high - low)).mean()
    noisy = dark and ((values[inside] <= faint).mean() >= NOISY_SHARE or lowest_share >= AIR_SHARE)
    if level is None:
        noisy = dark and (everywhere or lowest_share >= AIR_SHARE)
    if not noisy:
        return inside & (values > faint) if everywhere else inside
    spread = 1.4826 * np.median(np.abs(rim - middle))  # of a normal distribution its standard deviation
    threshold = max(faint, middle + NOISE_DEVIATIONS * spread)
    clear = inside & (values > min(threshold, zero + LARGEST_THRESHOLD * (high - zero)))
    pieces, _ = ndimage.label(clear)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes >= SMALL * sizes.max())[pieces] & clear
