"""A plan beside the default one in whole runs: timed operations propose, the whole run disposes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from hqtvae_fast.plan import Plan
from hqtvae_fast.tune.timing import FEWEST, Duel, duel

LEAST = 0.01
"""Of a whole run, that a plan must save: a run is long and its turns agree better than a call's."""
ENGINE: dict[str, tuple[tuple[str, ...], ...]] = {
    "cuda": (
        ("dependent_launch",),
        ("skip_query",),
        ("streamed_rows",),
        ("fused_norm",),
        ("quantized_products=but_down", "quantized_products=all"),
        ("fused_draw",),
        ("tables",),
        ("kv=int8",),
        ("chunk=32", "chunk=64", "chunk=128", "chunk=256"),
        ("cudnn_benchmark",),
        ("overlap=off", "overlap=priority"),
    ),
    "cpu": (("threads=1",), ("chunk=1", "chunk=2", "chunk=4", "chunk=8"), ("overlap=on",)),
}
"""What the engine may do differently, one after the other; each alternative in place of those before it. Not the whole
head in one operation, which goes by no choice: nothing would have proven it on that device before it is timed."""
BY_WORD = ("quantized_linear",)
"""Operations that only a word of the engine brings in: no run without it meets their choices."""
KEEP_BITS = ("dependent_launch", "skip_query", "overlap")
EIGHT_BITS = ("quantized_products=but_down", "quantized_products=all", "kv=int8")
"""What rounds numbers to 8 bits: tried where the user has allowed that, and where it does not cost the model too much
(:mod:`hqtvae_fast.tune.quality`)."""


def engine_words(device_type: str, refused: Iterable[str], *, eight_bits: bool) -> list[list[str]]:
    """Of :data:`ENGINE`, what may be tried; ``refused``: some of it as "engine word"."""
    barred = {*refused, *(f"engine {word}" for word in EIGHT_BITS if not eight_bits)}
    return [[word for word in kind if f"engine {word}" not in barred] for kind in ENGINE[device_type]]


Whole = Callable[[Plan, int], float]
"""Seconds of a batch under a plan. Raises MemoryError where it does not fit, NoRunError where it does not run."""


def _op(where: str) -> str:
    return where.partition(" ")[0]


class NoRunError(Exception):
    """A whole run is not possible under a plan; the message says why."""


class Confirm:
    """``whole`` runs a batch; nothing begins after ``end``, by ``now``."""

    def __init__(self, whole: Whole, end: float, now: Callable[[], float] = time.monotonic) -> None:
        self.whole, self.end, self.now = whole, end, now
        self.short = False
        """Whether a comparison was left out for lack of time."""
        self._seconds: dict[int, float] = {}  # that the last run of a batch took

    @property
    def left(self) -> bool:
        return self.now() < self.end

    def compare(self, one: Plan, other: Plan, batch: int) -> Duel | None:
        """In turns, after one run each that captures and warms up; None where one of them does not run, or where the
        fewest turns would take longer than is left."""

        def run(plan: Plan) -> float:
            return self.whole(plan, batch)

        if not self._has_time(batch, 2 * (FEWEST + 1)):
            return None
        try:
            began = self.now()
            for plan in (one, other):
                run(plan)
            self._seconds[batch] = (self.now() - began) / 2
            if not self._has_time(batch, 2 * FEWEST):
                return None
            return duel(one, other, run, seconds=max(0.0, self.end - self.now()), least=LEAST, now=self.now)
        except (NoRunError, MemoryError):
            return None

    def _has_time(self, batch: int, runs: int) -> bool:
        """For so many, as far as is known how long one takes."""
        enough = self.now() + runs * self._seconds.get(batch, 0.0) <= self.end
        self.short |= not enough
        return enough

    def choices(self, proposed: Plan, batches: Iterable[int]) -> tuple[Plan, dict[int, Duel]]:
        """The part of a proposed plan that makes whole runs faster, at no bucket slower: all of it, else the choices of
        those operations that do so each on its own; and the last comparison of each bucket. Choices of operations that
        only the engine's words bring in are kept for :meth:`engine`: no run meets them here."""
        later = {where: name for where, name in proposed.choices.items() if _op(where) in BY_WORD}
        empty = replace(proposed, choices=later)
        buckets = list(batches)
        if proposed.choices == later or not self.left:
            return empty, {}
        won, duels = self._wins(empty, proposed, buckets)
        if won:
            return proposed, duels
        kept, last = empty, dict[int, Duel]()
        for op in dict.fromkeys(_op(where) for where in proposed.choices if where not in later):
            if not self.left:
                break
            own = {where: name for where, name in proposed.choices.items() if _op(where) == op}
            tried = replace(kept, choices={**kept.choices, **own})
            won, duels = self._wins(kept, tried, buckets)
            if won:
                kept, last = tried, duels
        return kept, last

    def _wins(self, one: Plan, other: Plan, buckets: Sequence[int]) -> tuple[bool, dict[int, Duel]]:
        """Whether the other is faster at one bucket and slower at none."""
        found = {batch: self.compare(one, other, batch) for batch in buckets}
        duels = {batch: each for batch, each in found.items() if each is not None}
        faster = any(each.wins(LEAST) for each in duels.values())
        slower = len(duels) < len(found) or any(each.ratio > 1 + each.spread for each in duels.values())
        return faster and not slower, duels

    def engine(
        self, plan: Plan, batch: int, kinds: Sequence[Sequence[str]], *, keep_bits: bool = False
    ) -> tuple[str, Duel | None]:
        """How the engine runs a bucket, by coordinate descent from what it does by itself; and the comparison that the
        last change has won."""
        text, last = "", None
        for alternatives in kinds:
            base = text
            for word in alternatives:
                if not self.left:
                    return text, last
                if keep_bits and word.partition("=")[0] not in KEEP_BITS:
                    continue
                tried = ", ".join(filter(None, (base, word)))
                as_it_is, changed = (replace(plan, engine={batch: each}) for each in (text, tried))
                won = self.compare(as_it_is, changed, batch)
                if won is not None and won.wins(LEAST):
                    text, last = tried, won
        return text, last
