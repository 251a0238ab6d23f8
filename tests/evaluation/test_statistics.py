from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from scipy import stats

from custom.evaluation.statistics import bootstrap_interval, correlation, holm, paired_comparisons, summarize


def test_summarize():
    summary = summarize([1.0, 3.0])
    assert summary[:3] == (2.0, pytest.approx(math.sqrt(2)), 2)
    assert summary.subjects == 2
    assert 1.0 <= summary.low <= 2.0 <= summary.high <= 3.0
    with pytest.raises(ValueError, match="at least one value"):
        summarize([])
    with pytest.raises(ValueError, match="for each of 2 values; found 1"):
        summarize([1.0, 2.0], ["a"])


def test_one_subject_has_no_interval_however_many_values():
    summary = summarize([1.0, 2.0, 3.0], ["a", "a", "a"])
    assert summary.subjects == 1
    assert math.isnan(summary.low)
    assert math.isnan(summarize([1.0]).sd)


def test_an_infinite_value_is_not_averaged_away():
    summary = summarize([1.0, math.inf])
    assert summary.mean == math.inf
    assert math.isnan(summary.sd)
    assert math.isnan(summary.low)


def test_interval_of_many_subjects_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(10, 2, 400)
    low, high = bootstrap_interval(values, range(400))
    half = 1.96 * values.std(ddof=1) / 20
    # the percentiles of 2000 draws are known to a few hundredths of the interval's width
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert (low, high) == bootstrap_interval(values, range(400))


def test_repeated_values_of_a_subject_do_not_narrow_the_interval():
    values = np.random.default_rng(2).normal(0, 1, 10)
    once = bootstrap_interval(values, range(10))
    twelve_times = bootstrap_interval(np.repeat(values, 12), np.repeat(np.arange(10), 12))
    assert twelve_times == pytest.approx(once)


def test_holm_by_hand():
    # Holm 1979: 3 × 0.01; max(0.03, 2 × 0.03); max(0.06, 1 × 0.04)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    adjusted = holm([0.01, math.nan, 0.02])
    assert adjusted[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(adjusted[1])


def scores(values: np.ndarray) -> dict[str, dict[tuple[str, str], float]]:
    return {f"s{i}": {("t1", "t2"): float(v), ("t2", "t1"): float(v) + 1} for i, v in enumerate(values)}


def test_paired_comparisons_are_wilcoxon_tests_over_subjects():
    generator = np.random.default_rng(3)
    base = generator.normal(20, 2, 12)
    better, same = base + 0.5 + generator.normal(0, 0.1, 12), base + generator.normal(0, 0.5, 12)
    found = paired_comparisons({"ours": scores(base), "better": scores(better), "same": scores(same)}, "ours")
    assert [c.method for c in found] == ["better", "same"]
    assert found[0].p == pytest.approx(stats.wilcoxon(better - base).pvalue)
    assert found[0].corrected == pytest.approx(2 * found[0].p)
    assert found[0].difference == pytest.approx(np.median(better - base))
    assert found[0].subjects == 12
    with pytest.raises(ValueError, match="found 'other'"):
        paired_comparisons({"ours": scores(base)}, "other")


def signed_rank(values: Sequence[float]) -> float:
    """P-value of the comparison of scores with these differences."""
    (comparison,) = paired_comparisons({"x": scores(np.asarray(values)), "y": scores(np.zeros(len(values)))}, "y")
    return comparison.p


class TestSignedRank:
    @pytest.mark.parametrize("values", [[1, 1, 2, -1, 3], [2, -2, 0, 5, 5, 1, 0, -7], [3, 3, 3], [-1, 4, 4, 4, 2, -2]])
    def test_every_assignment_of_signs_is_counted_where_there_are_ties(self, values: list[int]) -> None:
        values = [v for v in values if v]
        ranks = stats.rankdata(np.abs(values))
        sums = np.array([ranks @ np.array(signs) for signs in product((0, 1), repeat=len(values))])
        found = ranks[np.array(values) > 0].sum()
        tails = (sums <= found).mean(), (sums >= found).mean()
        assert signed_rank(values) == pytest.approx(min(1, 2 * min(tails)), rel=1e-12)
        assert signed_rank([*values, 0, 0]) == signed_rank(values)

    @pytest.mark.parametrize("count", [1, 2, 9, 25, 50, 51, 200])
    def test_without_ties_it_is_scipys(self, count: int) -> None:
        values = np.random.default_rng(count).normal(0.2, 1, count)
        assert signed_rank(values) == pytest.approx(stats.wilcoxon(values).pvalue, rel=1e-9)

    def test_few_subjects_with_a_tie_are_tested_without_a_warning(self) -> None:
        assert signed_rank([0, 0, 0, 1]) == 1
        assert signed_rank([1.0] * 6) == pytest.approx(2 / 2**6)


def test_only_what_both_have_is_compared():
    first = {"a": {1: 3.0, 2: 100.0}, "b": {1: 5.0}, "c": {1: math.inf}}
    second = {"a": {1: 2.0}, "b": {1: 3.0}, "c": {1: 1.0}, "d": {1: 9.0}}
    (comparison,) = paired_comparisons({"x": first, "y": second}, "y")
    assert comparison.difference == pytest.approx(1.5)
    assert comparison.subjects == 2


def test_equal_methods_have_no_p_value():
    base = scores(np.arange(8.0))
    (comparison,) = paired_comparisons({"x": base, "y": base}, "y")
    assert math.isnan(comparison.p)
    assert comparison.difference == 0


def test_correlation():
    values = np.arange(20.0)
    assert correlation(values, values**3) == pytest.approx(1.0)
    assert correlation(values, -values) == pytest.approx(-1.0)
    assert math.isnan(correlation(values, np.ones(20)))
