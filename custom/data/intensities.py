"""Intensities of a scan as the networks take them: the named scales, and the check for integers that overflowed.

A scanner's units are arbitrary, so both scales give the same image for every increasing affine map of a scan, and do
not depend on the value of its background. Neither needs to know the contrast.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from custom.data.foreground import BACKGROUND, FAINT, SIGNED_SHARE, foreground_key, levels_of, rim_of
from custom.data.sets import on_members, source_name
from custom.utils.errors import telling_label_clients
from custom.utils.intensity_scales import PERCENTILE, scale_number

__all__ = ["HIGH", "LOW", "PERCENTILE_ENDS", "ScaleIntensitiesd", "has_wrapped"]

PERCENTILE_ENDS = "percentile_ends"  # in the metadata: where on another scale, in [0, 1], those of "percentile" lie

LOW, HIGH = 0.5, 99.5  # percentiles of the foreground's box that the scale "percentile" maps to the ends

# Of the scale "brain", in [0, 1]: where every brain has its median and how far its deciles 1 and 9 are apart. The ends
# are then 1.6 such distances below the median and 3.4 above. On 17 subjects (BraTS 2021, TCGA-LGG, MS) the darkest
# thousandth is 1.0 (T2) to 1.6 (T1) below, the 99.5th percentile 0.9 (T1) to 2.2 (T2) above, at most 4.4 (T1ce).
MEDIAN, SPREAD = 0.32, 0.2
DECILES = (10, 50, 90)

NEAR = 0.25  # of the brain's range: how far below the brain a background may be to be taken for zero signal


class ScaleIntensitiesd(MapTransform):
    """Map each image to [-1, 1], its background to -1, by one of the named scales.

    ``"percentile"``: the percentiles 0.5 and 99.5 of the foreground's bounding box become -1 and 1. What lies outside
    the foreground counts as no signal: the value of the background if it is a little below the brain, as in a raw
    scan, otherwise the brain's lowest, as the value was then chosen by somebody (z-scores beside 0, -1000, NaN).

    ``"brain"``: an affine map after which every brain has the same median and the same distance of its deciles 1 and
    9, whatever surrounds it; what does not fit into [-1, 1] then is clipped.

    Args:
        keys: images (1, H, W, D), cropped to their foreground, whose mask lies under ``foreground_key``; of a set
            (S, H, W, D) each source by itself.
        scale: name of the scale.
        allow_missing_keys: do not raise for an absent key.

    Raises:
        ValueError: for an unknown scale; for an image whose landmarks coincide, such as a few bright voxels.
    """

    def __init__(self, keys: KeysCollection, scale: str = PERCENTILE, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        scale_number(scale)
        self.scale = scale

    @telling_label_clients
    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            scaled = partial(self._scaled, key=key)
            d[key] = on_members(scaled, d[key], d[foreground_key(str(key))])
        return d

    def _scaled(self, image: torch.Tensor, mask: torch.Tensor, key: Hashable) -> torch.Tensor:
        values, inside = (_array(tensor) for tensor in (image, mask))
        tissue, level = _tissue_and_level(values, inside)
        brain = values[tissue]
        # in double precision, so that an offset of the scan does not eat up its contrast
        signal = np.where(tissue, values, level).astype(np.float64)
        low, high = ends = np.percentile(signal, (LOW, HIGH))
        if self.scale != PERCENTILE:
            lower, middle, upper = np.percentile(brain.astype(np.float64), DECILES)
            low = middle - MEDIAN / SPREAD * (upper - lower)
            high = low + (upper - lower) / SPREAD
        if not high > low or inside.mean() < 1 - HIGH / 100:
            raise ValueError(
                f"{source_name(image, key)}: expected a brain; found tissue in {inside.mean():.1%} of its bounding "
                f"box, with intensities from {brain.min(initial=level):g} to {brain.max(initial=level):g}. Check that "
                "the image is no map of a few structures."
            )
        scaled = ((signal - low) / (high - low)).clip(0, 1) * -2 * BACKGROUND + BACKGROUND
        scaled[~inside] = BACKGROUND
        result = convert_to_dst_type(scaled.astype(np.float32), dst=image)[0]
        if self.scale != PERCENTILE and isinstance(result, MetaTensor):
            result.meta[PERCENTILE_ENDS] = (ends - low) / (high - low)
        return result


def _array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor).cpu().numpy()


def _tissue_and_level(values: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, float]:
    """The foreground without cavities that have the background's value, and the intensity of no signal."""
    around = values[~inside & np.isfinite(values)]
    outside = np.median(around) if around.size else -np.inf
    brain = values[inside]
    low, high = np.percentile(brain, (LOW, HIGH))
    clearly_below = brain < outside - FAINT * (high - low)
    if clearly_below.mean() >= SIGNED_SHARE:
        tissue = inside & (values != outside)
        return tissue, float(values[tissue].min())
    tissue = inside & (values > outside)
    lowest = float(values[tissue].min(initial=high))
    return tissue, float(outside) if lowest - outside <= NEAR * (high - lowest) else lowest


JUMP, STEP = 0.75, 0.5  # of the range: by which neighbours differ
# jumps, of the voxels and of the steps. Real scans have none; clipped at their percentile 95, up to 0.006 and 0.29.
# Noise of equally frequent values has a third of the steps. Overflowed by a tenth or a half of the range, real scans
# have 0.003 or more, and 0.4 of the steps or more but for T1ce, whose few bright vessels overflow (from 0.27 on)
WRAPPED_SHARE = 5e-4
WRAPPED_RATIO = 0.36
END = 0.97  # of a type's range: what is further out is its end
# of jumps and steps, of the voxels: such noise has 0.75, overflowed scans up to 0.4, and coarse phantoms up to 0.6, of
# which most are jumps
NOISE_SHARE = 0.5


def has_wrapped(values: np.ndarray) -> bool:
    """Whether intensities have overflowed: from the highest to the lowest between neighbours, with nothing between.

    The values must fill the range of an integer type, both ends included. In an image, steps become rarer the higher
    they are; where integers have overflowed, neighbours differ by nearly the whole range, about as often as by a half
    to three quarters of it. Pairs with a voxel of the background's constant value do not count, nor do those with one
    that is not finite.

    Args:
        values: a volume (H, W, D).
    """
    finite = np.isfinite(values)
    background = levels_of(values[rim_of(finite)])[0][0]
    valid = finite & (values != background)
    low, high = values[finite].min(), values[finite].max()
    span, fewest = high - low, WRAPPED_SHARE * np.count_nonzero(valid)
    # one voxel of a jump is in the upper quarter of the range, and none is in more than six
    if 6 * np.count_nonzero(finite & (values > low + JUMP * span)) <= fewest:
        return False
    if not _fills_a_type(values[finite], values[valid]):
        return False
    values = np.where(finite, values, background)
    steps = jumps = 0
    for axis in range(values.ndim):
        moved, counted = (np.moveaxis(array, axis, 0) for array in (values, valid))
        difference = np.abs(moved[1:] - moved[:-1])
        places = np.nonzero(difference > STEP * span)
        both = counted[1:][places] & counted[:-1][places]
        jumping = int(np.count_nonzero(difference[places][both] > JUMP * span))
        jumps, steps = jumps + jumping, steps + int(both.sum()) - jumping
    noise = jumps + steps >= NOISE_SHARE * np.count_nonzero(valid) and jumps <= steps
    return bool(not noise and jumps > max(WRAPPED_RATIO * steps, fewest))


def _step(values: np.ndarray) -> float:
    """What sorted ``values`` are whole multiples of, but for a constant; less than any gap of whole numbers, maybe."""
    gaps = np.diff(values.astype(np.float64))
    return float(np.gcd.reduce(gaps.astype(np.int64)) if (gaps == np.rint(gaps)).all() else gaps.min())


def _fills_a_type(values: np.ndarray, counted: np.ndarray) -> bool:
    """Whether whole multiples of one step reach from end to end of 8, 12 or 16 bits, and often come near either end."""
    found = np.unique(values)
    levels = (float(found[-1]) - float(found[0])) / _step(found) + 1
    if not any(END < levels / 2**bits < 1.01 for bits in (8, 12, 16)):
        return False
    margin = (1 - END) * (found[-1] - found[0])
    top = (counted > found[-1] - margin) & (counted < found[-1])
    bottom = (counted < found[0] + margin) & (counted > found[0])
    return bool(min(top.sum(), bottom.sum()) > WRAPPED_SHARE * counted.size)
