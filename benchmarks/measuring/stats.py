"""The statistics behind every verdict: rank tests on logarithms of times, and bootstrap intervals.

Times on a shared machine have heavy tails, so nothing here assumes a normal distribution. The tests are exact for any
number of units: the null distribution of the rank sum is counted, not approximated. A unit is what is independent of
the others: a pair of processes, or a process; runs of one process share its memory layout and are summed up first.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

ALPHA = 0.01  # of an alarm where nothing has changed, in a whole comparison
RESAMPLES = 2000


@dataclass(frozen=True)
class Shift:
    """How much larger NEW is than BASE, as a share (0.03: 3% more), by Hodges and Lehmann.

    ``low`` and ``high`` bound it with confidence 1 - 2 * ALPHA, infinite where there are too few units. ``p_more`` and
    ``p_less``: how likely ranks so extreme are if nothing has changed, one-sided each.
    """

    estimate: float
    low: float
    high: float
    p_more: float
    p_less: float
    units: int


def paired_shift(log_ratios: Sequence[float]) -> Shift:
    """From log(new / base) of each pair: Wilcoxon's signed ranks, the estimate the median of the Walsh averages."""
    values = np.asarray(log_ratios, dtype=np.float64)
    count = len(values)
    if count == 0:
        raise ValueError("paired_shift: expected at least one pair; got none")
    rows, columns = np.triu_indices(count)
    averages = np.sort((values[rows] + values[columns]) / 2)
    return _shift(averages, _signed_rank_counts(count), count)


def unpaired_shift(base: Sequence[float], new: Sequence[float]) -> Shift:
    """From the units' values on both sides, all positive: Mann and Whitney's ranks."""
    if not base or not new:
        raise ValueError(f"unpaired_shift: expected values on both sides; got {len(base)} and {len(new)}")
    differences = np.sort(np.subtract.outer(np.log(new), np.log(base)).ravel())
    return _shift(differences, _rank_sum_counts(len(base), len(new)), min(len(base), len(new)))


def _shift(ordered: np.ndarray, counts: tuple[int, ...], units: int) -> Shift:
    """Both tests count which of ``ordered`` are above zero; ``counts[k]``: in how many ways k of them can be."""
    total = sum(counts)
    below = np.array([number / total for number in itertools.accumulate(counts)])  # P(statistic <= k)
    # Ties with zero count against any change: two exactly equal sides are no evidence at all.
    p_more = _tail(below, int((ordered <= 0).sum()))
    p_less = _tail(below, int((ordered >= 0).sum()))
    cut = int(np.searchsorted(below, ALPHA, side="right"))  # the most that may be dropped on each side, plus one
    low, high = (ordered[cut - 1], ordered[-cut]) if cut > 0 else (-math.inf, math.inf)
    return Shift(math.expm1(np.median(ordered)), math.expm1(low), _expm1(high), p_more, p_less, units)


def _expm1(value: float) -> float:
    return math.expm1(value) if value < 700 else math.inf


def _tail(below: np.ndarray, statistic: int) -> float:
    return float(below[min(statistic, len(below) - 1)])


@cache
def _signed_rank_counts(count: int) -> tuple[int, ...]:
    """Number of subsets of {1, ..., count} by their sum."""
    ways = [1]
    for rank in range(1, count + 1):
        longer = ways + [0] * rank
        for total, number in enumerate(ways):
            longer[total + rank] += number
        ways = longer
    return tuple(ways)


@cache
def _rank_sum_counts(left: int, right: int) -> tuple[int, ...]:
    """Number of orders of ``left`` and ``right`` values by how many pairs of one each stand the wrong way round."""
    # Coefficients of the Gaussian binomial: each partial product of (1 - q^(right + i)) / (1 - q^i) is a polynomial.
    ways = [1]
    for i in range(1, left + 1):
        times = ways + [0] * (right + i)
        for power, number in enumerate(ways):
            times[power + right + i] -= number
        for power in range(i, len(times)):
            times[power] += times[power - i]
        ways = times[: len(times) - i]
    return tuple(ways)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values made fit for asking all questions at once (Holm's step-down)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


# ------------------------------------------------------------------------------------------------------ one side alone


def median_over_processes(samples: Sequence[Sequence[float]]) -> float:
    """The median over processes of each one's median."""
    return statistics.median(statistics.median(runs) for runs in samples)


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(np.asarray(values), share))


def bootstrap_interval(
    samples: Sequence[Sequence[float]],
    of: Callable[[Sequence[Sequence[float]]], float] = median_over_processes,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic, by drawing processes, and runs within them, with replacement (seeded).

    Of a single process only its runs are drawn: such an interval knows nothing of how processes differ.
    """
    random = np.random.default_rng(0)

    def draw(runs: Sequence[float]) -> np.ndarray:
        return np.asarray(runs)[random.integers(len(runs), size=len(runs))]

    found = []
    for _ in range(RESAMPLES):
        picked = random.integers(len(samples), size=len(samples))
        found.append(of([draw(samples[index]) for index in picked]))
    edge = (1 - confidence) / 2
    return quantile(found, edge), quantile(found, 1 - edge)
