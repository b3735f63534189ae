"""Which batch sizes are worth having, by how long whole runs take.

A batch size is worth having if it is the one with the most images a second, or a smaller one that saves time over the
next larger that is kept: a request's last images are computed as the smallest kept size that holds them, and each size
costs the memory of its captures. Sizes above the fastest one are not kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hqtvae_fast.engine.batches import is_out_of_memory

WORTH = 0.95
"""A size is kept if it takes at most this share of the next larger one's time."""
SECONDS, MOST_RUNS = 1.0, 20  # for each size, after one run that captures and warms up
PAST_BEST = 0.8  # sizes whose images a second fall below this share of the best end the search


@dataclass(frozen=True)
class BatchTuning:
    """Seconds of drawing and decoding a batch, by its size."""

    seconds: Mapping[int, float]

    @property
    def best(self) -> int:
        """The size with the most images a second; of equal ones the smallest."""
        return max(sorted(self.seconds), key=lambda size: size / self.seconds[size])

    @property
    def buckets(self) -> tuple[int, ...]:
        """The measured sizes to compute with, ascending; the last one is :attr:`best`."""
        kept = [self.best]
        for size in sorted((size for size in self.seconds if size < self.best), reverse=True):
            if self.seconds[size] <= WORTH * self.seconds[kept[-1]]:
                kept.append(size)
        return tuple(reversed(kept))

    def among(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """:attr:`buckets` and those smaller than the best of ``sizes`` that nobody measured, so that a few images need
        not be computed as many; less those that take at least the time of a smaller one that was not worth it."""
        kept = set(self.buckets)
        for size in sizes:
            below = [measured for measured in self.seconds if measured < size]
            if size < self.best and size not in self.seconds and (not below or max(below) in self.buckets):
                kept.add(size)
        return tuple(sorted(kept))


def measure(run: Callable[[int], float], sizes: Sequence[int]) -> BatchTuning:
    """``run``: seconds of a batch of that size, drawn and decoded. Medians at ascending ``sizes``.

    Ends at the first that does not fit into memory, or that is well past the best. Raises MemoryError if the smallest
    does not fit.
    """
    seconds: dict[int, float] = {}
    for size in sorted(set(sizes)):
        try:
            run(size)
            seconds[size] = _median_seconds(run, size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if not seconds:
                raise MemoryError(f"not enough memory for {size} image{'s' if size > 1 else ''} at once") from error
            break
        tuning = BatchTuning(seconds)
        if size / seconds[size] < PAST_BEST * tuning.best / seconds[tuning.best]:
            break
    return BatchTuning(seconds)


def _median_seconds(run: Callable[[int], float], size: int) -> float:
    taken: list[float] = []
    while not taken or (sum(taken) < SECONDS and len(taken) < MOST_RUNS):
        taken.append(run(size))
    return statistics.median(taken)
