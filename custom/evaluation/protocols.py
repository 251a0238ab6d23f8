"""The scales that predictions are scored on: the paper's percentiles, and two that forgive a wrong brightness.

On the paper's scale the truth's percentiles 0.5 and 99.5 are 0 and 1. A prediction of weights that were trained on
another intensity scale is brought there by constants of its contrast, learned from the training subjects, as the
truth's own are not known to who has only the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from custom.data.intensities import PERCENTILE_ENDS

__all__ = ["RESCALINGS", "ContrastEnds", "ends_of", "on_percentiles", "standardising"]


class Line(NamedTuple):
    """x ↦ slope · x + offset."""

    slope: float
    offset: float


def standardising(prediction: np.ndarray, truth: np.ndarray) -> Line:
    """Brings the prediction's median and interquartile range in the brain to the truth's."""
    (low, middle, high), (low_t, middle_t, high_t) = (np.percentile(x, (25, 50, 75)) for x in (prediction, truth))
    slope = (high_t - low_t) / (high - low) if high > low else 0.0
    return Line(float(slope), float(middle_t - slope * middle))


def fitted(prediction: np.ndarray, truth: np.ndarray) -> Line:
    """Least squares over the brain."""
    x, y = prediction.astype(np.float64), truth.astype(np.float64)
    variance = x.var()
    slope = float(((x - x.mean()) * (y - y.mean())).mean() / variance) if variance > 0 else 0.0
    return Line(slope, float(y.mean() - slope * x.mean()))


# name of a protocol → line from the prediction's intensities in the truth's brain to the truth's
RESCALINGS: Mapping[str, Callable[[np.ndarray, np.ndarray], Line]] = {"standardised": standardising, "fitted": fitted}


def ends_of(image: Tensor) -> tuple[float, float] | None:
    """Where a preprocessed image's percentiles 0.5 and 99.5 lie in [0, 1]; None where they are 0 and 1."""
    found = image.meta.get(PERCENTILE_ENDS) if isinstance(image, MetaTensor) else None
    if found is None:
        return None
    low, high = (float(end) for end in np.ravel(torch.as_tensor(found).cpu()))
    return low, high


def on_percentiles(image: Tensor, ends: tuple[float, float] | None) -> Tensor:
    """``image`` in [0, 1], background 0, with its intensities between ``ends`` brought to [0, 1]."""
    if ends is None:
        return image
    low, high = ends
    return torch.where(image > 0, (image - low) / (high - low), 0.0).clamp(0, 1)


class ContrastEnds:
    """Mean ends of each contrast over the training subjects, see :func:`ends_of`.

    Args:
        modalities: canonical names.
    """

    def __init__(self, modalities: Sequence[str]) -> None:
        self.modalities = tuple(modalities)
        self._sums = np.zeros((len(self.modalities), 3))  # of low and high ends, and their number

    def update(self, images: Mapping[str, Tensor]) -> None:
        """Learn from one subject, its preprocessed images by modality."""
        for i, name in enumerate(self.modalities):
            ends = ends_of(images[name]) if name in images else None
            if ends is not None:
                self._sums[i] += (*ends, 1)

    def of(self, modality: str) -> tuple[float, float] | None:
        """Ends of predictions of ``modality``; None where the training's scale is the percentiles' already."""
        low, high, number = self._sums[self.modalities.index(modality)]
        if not self._sums.any():
            return None
        if number == 0:
            raise ValueError(
                f"{modality}: expected a training subject with this contrast, whose brightness on the scale of "
                "percentiles brings predictions there; found none. Leave the contrast out, or add one."
            )
        return low / number, high / number

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned arrays, for a file."""
        return {"ends_sums": self._sums}

    @classmethod
    def of_arrays(cls, modalities: Sequence[str], arrays: Mapping[str, np.ndarray]) -> ContrastEnds:
        """The ends that gave these :meth:`arrays`."""
        ends = cls(modalities)
        ends._sums = arrays["ends_sums"]
        return ends
