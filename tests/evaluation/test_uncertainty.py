"""Tests of custom.evaluation.uncertainty."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from custom.evaluation.uncertainty import reliability, score_error_map


def drawn(count: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors with a known expectation, and a brain that leaves out what would spoil all."""
    random = np.random.default_rng(0)
    expected = random.uniform(0.05, 0.5, count)
    error = random.exponential(expected)
    brain = np.arange(count) % 5 > 0
    return np.where(brain, error, 9), np.where(brain, expected, -9), brain


def test_a_map_that_is_right_is_called_right() -> None:
    error, expected, brain = drawn()
    scores = score_error_map(error, expected, brain)
    assert scores.correlation == pytest.approx(spearmanr(error[brain], expected[brain]).statistic)
    assert scores.correlation > 0.4
    assert len(scores.bins) == 10
    for one in scores.bins:  # the mean of 1600 exponential errors lies within 1/40 of its expectation, one sigma
        assert one.observed == pytest.approx(one.expected, rel=4 / 40)
    assert [b.expected for b in scores.bins] == sorted(b.expected for b in scores.bins)


def test_a_map_that_promises_half_is_found_out() -> None:
    error, expected, brain = drawn()
    scores = score_error_map(error, expected / 2, brain)
    assert all(b.observed > 1.7 * b.expected for b in scores.bins)
    shuffled = score_error_map(
        error, np.random.default_rng(1).permutation(expected[brain])[np.cumsum(brain) - 1], brain
    )
    assert abs(shuffled.correlation) < 0.05


def test_lesions_among_the_most_uncertain() -> None:
    error, expected, brain = drawn()
    lesion = brain & (expected > np.quantile(expected[brain], 0.9))  # the most uncertain tenth: half of it counts
    assert score_error_map(error, expected, brain, lesion).lesion_share == pytest.approx(0.5, abs=0.01)
    assert math.isnan(score_error_map(error, expected, brain).lesion_share)
    assert math.isnan(score_error_map(error, expected, brain, ~brain).lesion_share)


def test_a_map_without_differences_has_no_rank() -> None:
    error, _, brain = drawn()
    scores = score_error_map(error, np.full_like(error, 0.1), brain)
    assert math.isnan(scores.correlation)
    assert [b.expected for b in scores.bins] == pytest.approx([0.1] * 10)


def test_reliability_is_the_mean_of_the_bins() -> None:
    error, expected, brain = drawn()
    one, other = (score_error_map(scale * error, expected, brain) for scale in (1, 3))
    for mean, first in zip(reliability([one, other]), one.bins, strict=True):
        assert mean.observed == pytest.approx(2 * first.observed)
        assert mean.expected == pytest.approx(first.expected)
    assert reliability([]) == ()


def test_too_small_a_brain() -> None:
    with pytest.raises(ValueError, match="brain: expected at least 10 voxels; found 3"):
        score_error_map(np.ones(5), np.ones(5), np.array([1, 1, 1, 0, 0], bool))
