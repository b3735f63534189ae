"""The statistics of verdicts, against SciPy's and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, wilcoxon

from benchmarks.measuring import stats


@pytest.mark.parametrize("count", [1, 5, 9, 20])
def test_signed_ranks_are_scipys(count):
    log_ratios = np.random.default_rng(count).normal(0.01, 0.03, count)
    shift = stats.paired_shift(log_ratios)
    assert shift.p_more == pytest.approx(wilcoxon(log_ratios, alternative="greater", mode="exact").pvalue)
    assert shift.p_less == pytest.approx(wilcoxon(log_ratios, alternative="less", mode="exact").pvalue)


@pytest.mark.parametrize("left,right", [(1, 1), (3, 5), (8, 8), (12, 7)])
def test_rank_sums_are_scipys(left, right):
    random = np.random.default_rng(left)
    base, new = np.exp(random.normal(0, 0.1, left)), np.exp(random.normal(0.05, 0.1, right))
    shift = stats.unpaired_shift(list(base), list(new))
    assert shift.p_more == pytest.approx(mannwhitneyu(new, base, alternative="greater", method="exact").pvalue)
    assert shift.p_less == pytest.approx(mannwhitneyu(new, base, alternative="less", method="exact").pvalue)


def test_equal_sides_are_no_evidence():
    for shift in (stats.paired_shift([0.0] * 10), stats.unpaired_shift([2.0] * 8, [2.0] * 8)):
        assert shift.estimate == 0
        assert shift.p_more == shift.p_less == 1


def test_too_few_units_bound_nothing():
    shift = stats.paired_shift([0.5] * 6)
    assert (shift.low, shift.high) == (-1, math.inf)
    assert shift.p_more == 1 / 64


def test_an_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    noise = random.standard_t(2, (2000, 12)) * 0.01  # tails as heavy as a shared machine's
    shifts = [stats.paired_shift(math.log(1.05) + row) for row in noise]
    held = sum(shift.low <= 0.05 <= shift.high for shift in shifts) / len(shifts)
    assert held >= 1 - 2 * stats.ALPHA - 0.01
    assert all(shift.low < shift.estimate < shift.high for shift in shifts)


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_bootstrap_over_processes_is_wider_than_over_runs():
    random = np.random.default_rng(0)
    processes = [list(1 + offset + random.normal(0, 0.001, 20)) for offset in random.normal(0, 0.05, 8)]
    pooled = [[value for process in processes for value in process]]
    low, high = stats.bootstrap_interval(processes)
    assert low < stats.median_over_processes(processes) < high
    narrow = stats.bootstrap_interval(pooled)
    assert high - low > narrow[1] - narrow[0]
    assert stats.bootstrap_interval(processes) == (low, high)


def test_nothing_to_compare():
    with pytest.raises(ValueError, match="at least one pair"):
        stats.paired_shift([])
    with pytest.raises(ValueError, match="both sides; got 0 and 1"):
        stats.unpaired_shift([], [1.0])
