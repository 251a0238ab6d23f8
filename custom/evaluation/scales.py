"""The scale of predicted intensities: how those of somebody else's model are brought to that of the true image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from custom.evaluation.metrics import Reference, bounding_box

__all__ = [
    "AS_TRUTH",
    "AUTO",
    "RANGES",
    "UNIT",
    "Range",
    "Truth",
    "check_unit",
    "decide_range",
    "described",
    "on_scale",
    "scale_of",
]

AUTO, AS_TRUTH, UNIT, SIGNED, OWN = "auto", "truth", "unit", "signed", "own"
RANGES = {
    AUTO: "as the values suggest",
    AS_TRUTH: "in the truth's units",
    UNIT: "in [0, 1]",
    SIGNED: "in [-1, 1]",
    OWN: "mapped by the prediction's own percentiles 0.5 and 99.5",
}
FIXED = {UNIT: (0.0, 1.0), SIGNED: (-1.0, 1.0)}
SLACK = 0.05  # of overshoot that still counts as [0, 1] or [-1, 1]
SAME_SCALE = 0.01  # of the range: two readings that differ by less give the same scores for all that matters
DARKEST = 0.1  # of [0, 1]: a brain whose bright end is darker is no image in [0, 1]
PLAUSIBLE = 2.0  # factor between the bright ends of prediction and truth beyond which their units differ
LOWEST, HIGHEST = -0.25, 0.4  # where the dark end of a brain can lie, as a share of the truth's range
BOX_MARGIN = 2  # voxels, as in the preprocessing
PERCENTILES = (0.5, 99.5)

Range = str | tuple[float, float]


class Truth(NamedTuple):
    """A true image and what it takes to bring a prediction to its grid and scale.

    Attributes:
        image: as it was read, (1, H, W, D).
        reference: what predictions are scored against.
        low, high: intensities that become 0 and 1.
    """

    image: MetaTensor
    reference: Reference
    low: float
    high: float

    @property
    def brain(self) -> Tensor:
        """Mask (H, W, D)."""
        return self.reference.masks["brain"]

    @property
    def background(self) -> Tensor:
        """Mask (H, W, D) of the voxels that the protocol makes 0 although their intensity is not the lowest.

        Such is the background of a z-scored image, in the middle of the brain's intensities, or one that is NaN.
        """
        raw = (self.image.as_tensor()[0].float() - self.low) / max(self.high - self.low, 1e-12)
        return ~(raw <= SAME_SCALE) & (self.reference.truth == 0)


def scale_of(raw: Tensor, scaled: Tensor) -> tuple[float, float]:
    """Intensities that the protocol maps to 0 and 1, from voxels that are not clipped.

    Args:
        raw: a true image as it was read, (H, W, D).
        scaled: the same in [0, 1].
    """
    inner = (scaled > 0) & (scaled < 1)
    x, y = scaled[inner].double(), raw[inner].double()
    first, last = int(x.argmin()), int(x.argmax())
    slope = (y[last] - y[first]) / (x[last] - x[first])
    low = float(y[first] - slope * x[first])
    return low, low + float(slope)


def decide_range(prediction: Tensor, truth: Truth) -> str | None:
    """How the values of a prediction are to be read: the one key of ``RANGES`` that fits.

    Args:
        prediction: (H, W, D) on the truth's grid.
        truth: of the same subject.

    Returns:
        None where nothing can be told: for a constant prediction, or one that fits no reading.

    Raises:
        ValueError: where several readings fit and would give other scores.
    """
    values = prediction[torch.isfinite(prediction)]
    if not len(values) or values.min() == values.max():
        return None
    fitting = [kind for kind in (AS_TRUTH, UNIT, SIGNED) if _fits(prediction, truth, kind)]
    scales = {_ends(kind, truth) for kind in fitting}
    tolerance = SAME_SCALE * (truth.high - truth.low)
    if len(fitting) > 1 and any(np.ptp(ends) > tolerance for ends in zip(*scales, strict=True)):
        raise ValueError(
            f"its intensities ({_span(prediction, truth)}) can be read in {len(fitting)} ways: "
            + ", ".join(f"{kind!r} ({described(kind, truth)})" for kind in fitting)
        )
    return fitting[0] if fitting else None


def check_unit(values: Tensor) -> None:
    """Refuse a translation of this program, as its record says, whose values were brought elsewhere since.

    Raises:
        ValueError: for values outside [0, 1].
    """
    if bool(((values < -SLACK) | (values > 1 + SLACK)).any()):
        raise ValueError(
            f"expected intensities in [0, 1], as those of its record are; found {float(values.min()):.4g} to "
            f"{float(values.max()):.4g}. Say how they are to be read with ranges"
        )


def on_scale(prediction: Tensor, truth: Truth, kind: Range, *, guessed: bool) -> tuple[Tensor, list[str]]:
    """Values (H, W, D) with the truth's scale, clipped to [0, 1] as the truth is, and what was done.

    Args:
        prediction: (H, W, D) on the truth's grid.
        truth: of the same subject.
        kind: a key of ``RANGES`` but ``auto``, or the intensities that mean 0 and 1.
        guessed: the kind follows from the model's other values: that this prediction does not fit it is an error.

    Raises:
        ValueError: for voxels that are not finite, and for values that are not on the scale that was guessed.
    """
    void = truth.background if kind == AS_TRUTH else torch.zeros_like(truth.brain)
    broken = ~torch.isfinite(prediction) & ~(void & torch.isnan(truth.image.as_tensor()[0]))
    if bool(broken.any()):
        raise ValueError(f"expected finite intensities; found {int(broken.sum())} NaN or infinite voxels")
    low, high = float(prediction[~void].min()), float(prediction[~void].max())
    remarks = [] if low < high else [f"a prediction is constant ({low:g})"]
    if guessed and low < high and not _fits(prediction, truth, str(kind)):
        raise ValueError(
            f"expected intensities {described(kind, truth)}; found {_span(prediction, truth)}. Say how they are to be "
            f"read with ranges: '{AS_TRUTH}' as they are, '{OWN}' by their own percentiles, or the two intensities "
            "that mean 0 and 1"
        )
    if kind == OWN:
        bottom, top = _percentiles(prediction[bounding_box(truth.brain, BOX_MARGIN)])
        remarks.append(f"intensities {RANGES[OWN]}, which the protocol does not do")
    else:
        bottom, top = _ends(kind, truth)
        if guessed and kind != AS_TRUTH:
            remarks.append(f"intensities read as {RANGES[str(kind)]}, which is a guess")
        elif kind != AS_TRUTH:
            remarks.append(f"intensities read as {described(kind, truth)}")
    scaled = (prediction - bottom) / max(top - bottom, 1e-12)
    if bool(void.any()):
        scaled = torch.where(void, _distance(prediction, truth, void), scaled)
        remarks.append("the truth's background is not its darkest: there a prediction's distance from it counts")
    return scaled.clamp(0, 1), remarks


def described(kind: Range, truth: Truth | None = None) -> str:
    """A range in words."""
    if not isinstance(kind, str):
        return f"in [{kind[0]:g}, {kind[1]:g}]"
    if kind != AS_TRUTH or truth is None:
        return RANGES[kind]
    low = 0.0 if abs(truth.low) < 1e-3 * abs(truth.high) else truth.low  # rounding
    return f"{RANGES[kind]}, {low:.4g} to {truth.high:.4g}"


def _distance(prediction: Tensor, truth: Truth, void: Tensor) -> Tensor:
    """How far a prediction is from the truth's background, or from its usual value where that is noise."""
    raw = truth.image.as_tensor()[0].float()
    known = raw[void & torch.isfinite(raw)]
    usual = float(known.median()) if len(known) else truth.low
    distance = torch.minimum((prediction - raw).abs().nan_to_num(torch.inf), (prediction - usual).abs())
    return distance.nan_to_num(0.0) / max(truth.high - truth.low, 1e-12)


def _ends(kind: Range, truth: Truth) -> tuple[float, float]:
    """Intensities that mean 0 and 1."""
    if not isinstance(kind, str):
        return kind
    return FIXED.get(kind, (truth.low, truth.high))


def _fits(prediction: Tensor, truth: Truth, kind: str) -> bool:
    """Whether the values could be meant so."""
    bottom, top = _ends(kind, truth)
    dark, bright = ((end - bottom) / max(top - bottom, 1e-12) for end in _percentiles(prediction[truth.brain]))
    if kind not in FIXED:
        return LOWEST <= dark <= HIGHEST and 1 / PLAUSIBLE <= bright <= PLAUSIBLE
    values = (prediction[torch.isfinite(prediction)] - bottom) / (top - bottom)
    inside = bool(values.min() >= -SLACK and values.max() <= 1 + SLACK)
    return inside and bright >= DARKEST and (kind == UNIT or float(values.min()) < 0.25)


def _percentiles(values: Tensor) -> Sequence[float]:
    finite = values[torch.isfinite(values)].numpy()
    return [float(v) for v in np.percentile(finite, PERCENTILES)] if len(finite) else [np.nan, np.nan]


def _span(prediction: Tensor, truth: Truth) -> str:
    low, high = _percentiles(prediction[truth.brain])
    return f"mostly {low:.4g} to {high:.4g} in the brain"
