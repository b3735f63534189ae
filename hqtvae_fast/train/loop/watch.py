"""Whether a run goes wrong in one of the ways that its figures show; each is told once, with what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean, stdev

from hqtvae_fast.config import level_names
from hqtvae_fast.train.words import by_level, percent

PATIENCE = 200  # updates that codes may be out of use, as they are at first
LEAST_USAGE, LEAST_PERPLEXITY = 0.1, 2.0
WINDOW = 50  # updates whose mean loss is compared
FLAT_WINDOWS, FLAT = 6, 0.02  # so long no lower than at the start, by a share of it
RISING_WINDOWS, RISE = 3, 1.5  # so long above the lowest mean, by this factor
STAGE2_FLAT = "; soft_labels: 0"  # soft ones may be as good as even, and then teach nothing
FIRST, ERRORS = 5, 4.0  # figures that make the start; standard errors that a difference must exceed


class Watch:
    """Takes the metrics of updates, of all or of those that were logged, in their order.

    fresh: weights were drawn at random, so that the loss has to fall. restarts: unused codes are given new vectors. Of
    stage 1 it is the squared error of pictures that is watched: a discriminator changes the whole loss when it sets in.
    """

    def __init__(self, *, fresh: bool = True, restarts: bool = False) -> None:
        self.fresh, self.restarts = fresh, restarts
        self._given: set[str] = set()
        self._idle_since: dict[int, int] = {}
        self._start: list[float] = []
        self._window: list[float] = []
        self._window_began = 0
        self._lowest = float("inf")
        self._flat: int | None = 0  # windows; None once one was lower
        self._rising = 0

    def look(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """What is new and wrong at ``step`` updates, a message each."""
        told = [*self._codes(step, metrics), *self._course(step, metrics)]
        new = [message for kind, message in told if kind not in self._given]
        self._given.update(kind for kind, _ in told)
        return new

    # -------------------------------------------------------------------------------------------------------- codes

    def _codes(self, step: int, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        usage, perplexities = by_level(metrics, "usage"), by_level(metrics, "perplexity")
        for level, (name, share) in enumerate(zip(level_names(len(usage)), usage, strict=False)):
            few = share < LEAST_USAGE
            same = level < len(perplexities) and perplexities[level] < LEAST_PERPLEXITY
            if not (few or same):
                self._idle_since.pop(level, None)
            elif step - self._idle_since.setdefault(level, step) >= PATIENCE:
                yield f"codes {level}", _collapse(name, share, few, self.restarts)

    # --------------------------------------------------------------------------------------------------------- loss

    def _course(self, step: int, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        value = metrics.get("mse", metrics.get("loss"))
        if value is None:
            return
        if len(self._start) < FIRST:
            self._start.append(value)
        self._window.append(value)
        if step - self._window_began >= WINDOW:
            mean, error = fmean(self._window), _standard_error(self._window)
            self._window, self._window_began = [], step
            advice = STAGE2_FLAT if by_level(metrics, "level") else ""
            yield from self._judge(step, mean, error, advice)

    def _judge(self, step: int, mean: float, error: float, advice: str) -> Iterator[tuple[str, str]]:
        """Of a window's mean: in a row, from the first one on, as high as the start; in a row, above the lowest one."""
        start, lowest = fmean(self._start), self._lowest
        self._lowest = min(lowest, mean)
        if self._flat is not None:
            same = abs(mean - start) <= max(FLAT * abs(start), ERRORS * error)
            self._flat = self._flat + 1 if same else None
        self._rising = self._rising + 1 if mean > lowest + max((RISE - 1) * abs(lowest), ERRORS * error) else 0
        if self._rising == RISING_WINDOWS:
            yield (
                "loss",
                f"the loss rises: {mean:.4g} after {step:,} updates, and {lowest:.4g} before. What helps: to begin anew"
                f" with a lower learning_rate, a half or a tenth",
            )
        elif self._flat == FLAT_WINDOWS and self.fresh:
            yield (
                "loss",
                f"the loss is no lower than at the start: {mean:.4g} after {step:,} updates, and {start:.4g} then."
                f" What helps: another learning_rate, ten times as high or as low{advice}",
            )


def _collapse(name: str, share: float, few: bool, restarts: bool) -> str:
    what = (
        f"only {percent(share)} of the {name} codes have been in use"
        if few
        else f"nearly always the same one of the {name} codes has been chosen"
    )
    helps = ["smaller codebooks (model: codebook_sizes)", "a lower learning_rate"]
    if not restarts:
        helps = ["restart_unused: true", *helps]
    return f"{what} for {PATIENCE} updates, so this level says little of a picture. What helps: {'; '.join(helps)}"


def _standard_error(values: list[float]) -> float:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
