"""Statistics of the scores of a few subjects: means with intervals, paired tests, correlations.

Subjects are the independent units. Where a subject has several scores (one for each pair of modalities), it is drawn,
or compared, with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Comparison", "Summary", "bootstrap_interval", "correlation", "holm", "paired_comparisons", "summarize"]

RESAMPLES = 2000
LEVEL = 0.95
MOST_EXACT = 50  # subjects; as of SciPy

Scores = Mapping[Any, float]


class Summary(NamedTuple):
    """Mean, standard deviation (NaN for one value) and number of values; bootstrap interval (NaN for one subject).

    ``n`` counts values, ``subjects`` the subjects that they come from.
    """

    mean: float
    sd: float
    n: int
    low: float = math.nan
    high: float = math.nan
    subjects: int = 0


class Comparison(NamedTuple):
    """Paired comparison of a method with a reference: median difference, p-value and the same after Holm's correction.

    ``subjects`` have scores of both. ``p`` is NaN where there are none or all differences are 0.
    """

    method: str
    reference: str
    difference: float
    p: float
    corrected: float
    subjects: int


def summarize(values: Sequence[float], subjects: Sequence[Hashable] = ()) -> Summary:
    """Mean ± sd (of a sample) with a 95 % bootstrap interval over subjects.

    An infinite value (the PSNR of a perfect prediction) makes the mean infinite, and sd and interval NaN.

    Args:
        values: the scores.
        subjects: whose each is; by default each value has a subject of its own.

    Raises:
        ValueError: without a value, or for another number of subjects than values.
    """
    if not len(values):
        raise ValueError("summary: expected at least one value; found none.")
    owners = list(subjects) or list(range(len(values)))
    if len(owners) != len(values):
        raise ValueError(f"summary: expected a subject for each of {len(values)} values; found {len(owners)}.")
    data, count = np.asarray(values, dtype=np.float64), len(set(owners))
    if not np.isfinite(data).all():
        return Summary(float(data.mean()), math.nan, data.size, subjects=count)
    sd = float(data.std(ddof=1)) if data.size > 1 else math.nan
    return Summary(float(data.mean()), sd, data.size, *bootstrap_interval(data.tolist(), owners), count)


def bootstrap_interval(
    values: Sequence[float], subjects: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval (95 %) of the mean, subjects drawn with replacement, each with all its values.

    Args:
        values: finite scores.
        subjects: whose each is.
        resamples: number of draws.
        seed: of the draws, so that the same scores give the same interval.

    Returns:
        Low and high end; NaN for fewer than two subjects.
    """
    names, index = np.unique(np.asarray([str(s) for s in subjects]), return_inverse=True)
    if names.size < 2:
        return math.nan, math.nan
    sums, counts = np.bincount(index, weights=np.asarray(values, dtype=np.float64)), np.bincount(index)
    drawn = stats.bootstrap(
        (sums, counts), lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis), paired=True, n_resamples=resamples,
        confidence_level=LEVEL, method="percentile", random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down method (1979); a NaN is no test and stays NaN."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def paired_comparisons(scores: Mapping[str, Mapping[str, Scores]], reference: str) -> list[Comparison]:
    """Each method against the ``reference``: Wilcoxon's signed-rank test over subjects, corrected by Holm.

    A subject's value is its mean over the pairs that both methods have.

    Args:
        scores: method → subject → pair → score.
        reference: the method that the others are compared with.

    Raises:
        ValueError: if there are no scores of ``reference``.
    """
    if reference not in scores:
        raise ValueError(f"reference: expected one of {', '.join(scores)}; found {reference!r}.")
    found = []
    for method in (m for m in scores if m != reference):
        pairs = _differences(scores[method], scores[reference])
        median = float(np.median(pairs)) if pairs else math.nan
        found.append((method, median, _wilcoxon(pairs), len(pairs)))
    corrected = holm([p for _, _, p, _ in found])
    return [
        Comparison(method, reference, difference, p, adjusted, subjects)
        for (method, difference, p, subjects), adjusted in zip(found, corrected, strict=True)
    ]


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one of them is constant."""
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def _differences(method: Mapping[str, Scores], reference: Mapping[str, Scores]) -> list[float]:
    """Mean difference of each subject over the pairs that both have; infinite scores have no difference."""
    differences = []
    for subject in (s for s in method if s in reference):
        shared = [pair for pair in method[subject] if pair in reference[subject]]
        values = [(method[subject][p], reference[subject][p]) for p in shared]
        finite = [a - b for a, b in values if math.isfinite(a) and math.isfinite(b)]
        if finite:
            differences.append(float(np.mean(finite)))
    return differences


def _wilcoxon(differences: Iterable[float]) -> float:
    """Two-sided p-value of the signed-rank test, zeros left out as Wilcoxon did; NaN where nothing is left.

    Up to ``MOST_EXACT`` differences it is exact, ties included: SciPy's exact distribution is that without ties, and
    what it takes instead where there are some is another thing in each of its versions. Beyond, the normal
    approximation is SciPy's.
    """
    values = np.asarray([d for d in differences if d != 0], dtype=np.float64)
    if values.size == 0 or values.size > MOST_EXACT:
        return float(stats.wilcoxon(values).pvalue) if values.size else math.nan
    doubled = np.rint(2 * stats.rankdata(np.abs(values))).astype(int)  # whole numbers: tied ranks may be halves
    chances = np.ones(1)  # of each sum of the ranks that have a plus
    for rank in doubled:
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    found = doubled[values > 0].sum()
    return float(min(1.0, 2 * min(chances[: found + 1].sum(), chances[found:].sum())))
