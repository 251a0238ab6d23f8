"""How well an error map tells where a translation is wrong, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from custom.evaluation.statistics import correlation

__all__ = ["ErrorMapScores", "ReliabilityBin", "reliability", "score_error_map"]

BINS = 10
MOST_UNCERTAIN = 0.05  # share of the brain's voxels that a reader would look at first


class ReliabilityBin(NamedTuple):
    """Mean expected and mean observed absolute error of a bin's voxels."""

    expected: float
    observed: float


class ErrorMapScores(NamedTuple):
    """Scores of one error map over the brain.

    ``correlation``: Spearman's, of expected and true absolute error. ``bins``: ten with equally many voxels, from the
    least to the most expected error. ``lesion_share``: of the lesion's voxels, how many are among the 5 % most
    uncertain of the brain; 0.05 where the map knows nothing of lesions, NaN without a lesion.
    """

    correlation: float
    bins: tuple[ReliabilityBin, ...]
    lesion_share: float


def score_error_map(
    error: np.ndarray, expected: np.ndarray, brain: np.ndarray, lesion: np.ndarray | None = None
) -> ErrorMapScores:
    """Compare expected with true absolute errors.

    Args:
        error: true absolute errors, one a voxel.
        expected: absolute errors that were expected, in the same unit.
        brain: boolean, where to compare.
        lesion: boolean, where the lesion is known.

    Raises:
        ValueError: if the brain has fewer voxels than there are bins.
    """
    true, told = error[brain], expected[brain]
    if true.size < BINS:
        raise ValueError(f"brain: expected at least {BINS} voxels; found {true.size}.")
    # ties are parted by position, so that every bin has its share even of a map that is the same everywhere
    order = np.argsort(told, kind="stable")
    bins = tuple(ReliabilityBin(float(told[i].mean()), float(true[i].mean())) for i in np.array_split(order, BINS))
    return ErrorMapScores(correlation(true, told), bins, _lesion_share(told, None if lesion is None else lesion[brain]))


def _lesion_share(told: np.ndarray, lesion: np.ndarray | None) -> float:
    if lesion is None or not lesion.any():
        return math.nan
    return float((told[lesion] > np.quantile(told, 1 - MOST_UNCERTAIN)).mean())


def reliability(scores: Sequence[ErrorMapScores]) -> tuple[ReliabilityBin, ...]:
    """The mean of each bin over several error maps; none of none."""
    return tuple(
        ReliabilityBin(*(float(np.mean(values)) for values in zip(*same, strict=True)))
        for same in zip(*(score.bins for score in scores), strict=True)
    )
