"""Which of two variants is the faster one: timed in turns, and told only where noise does not tell it too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST = 0.03
"""Of the incumbent's time, that a challenger must save."""
SPREADS = 3.0
"""And that must be so many times what the saving is uncertain by, and more of few turns: the uncertainty is then itself
uncertain. Of 4,000 ties under noise of 10 % each, 0.2 to 0.4 % win, where three spreads alone let 0.8 to 3 % pass."""
FEW = 8
FEWEST, MOST = 5, 25  # turns
HOPELESS = 1.2
"""Ratio at which a challenger is given up after the fewest turns."""

Run = Any
Clock = Callable[[Run], float]
"""Seconds of one call of a run, as mean of as many as it likes."""


def spread(values: Sequence[float]) -> float:
    """By how much their median is uncertain: its standard error where they are normal, from their median deviation, so
    that a few that were disturbed do not count."""
    middle = statistics.median(values)
    deviation = statistics.median(abs(value - middle) for value in values)
    return 1.2533 * 1.4826 * deviation / len(values) ** 0.5


@dataclass(frozen=True)
class Duel:
    """Seconds a call of both, turn by turn."""

    incumbent: tuple[float, ...]
    challenger: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """The challenger's time over the incumbent's, of turns that follow each other."""
        return [b / a for a, b in zip(self.incumbent, self.challenger, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> float:
        """Of :attr:`ratio`."""
        return spread(self.ratios)

    def wins(self, least: float = LEAST) -> bool:
        """Whether the challenger is to replace the incumbent."""
        saved = 1 - self.ratio
        needed = SPREADS * (1 + FEW / len(self.incumbent)) * self.spread
        return len(self.incumbent) >= FEWEST and saved >= least and saved >= needed


def duel(
    incumbent: Run,
    challenger: Run,
    clock: Clock,
    *,
    seconds: float,
    least: float = LEAST,
    now: Callable[[], float] = time.monotonic,
) -> Duel:
    """Turns A B A B for ``seconds``, at least five and at most 25. Looked at once in between, for who looks after every
    turn will see anything."""
    mine: list[float] = []
    theirs: list[float] = []
    end = now() + seconds
    while len(mine) < FEWEST or (len(mine) < MOST and now() < end):
        mine.append(clock(incumbent))
        theirs.append(clock(challenger))
        so_far = Duel(tuple(mine), tuple(theirs))
        if (len(mine) == FEW and so_far.wins(least)) or (len(mine) >= FEWEST and so_far.ratio >= HOPELESS):
            break
    return Duel(tuple(mine), tuple(theirs))


@dataclass(frozen=True)
class Chosen:
    """Of one choice. ``duel``: None where nothing has beaten the default variant."""

    name: str
    same_bits: bool = True
    duel: Duel | None = None


def best(default: str, duels: Mapping[str, tuple[Duel, bool]], *, keep_bits: bool = False) -> Chosen:
    """The winner by the largest saving. A variant that gives other bits must save :data:`LEAST` more than the best one
    that gives the same; ``keep_bits`` admits none that does not."""
    winners = [Chosen(name, same, won) for name, (won, same) in duels.items() if won.wins()]
    same = [each for each in winners if each.same_bits]
    chosen = min(same, key=_ratio, default=Chosen(default))
    if keep_bits:
        return chosen
    other = min((each for each in winners if not each.same_bits), key=_ratio, default=chosen)
    return other if _ratio(other) <= _ratio(chosen) - LEAST else chosen


def _ratio(chosen: Chosen) -> float:
    return 1.0 if chosen.duel is None else chosen.duel.ratio
