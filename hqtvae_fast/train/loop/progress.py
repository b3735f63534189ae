"""What a run shows of itself: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hqtvae_fast.train.words import duration, held_out, in_words, speed

FIRST_SECONDS, LINE_SECONDS = 5.0, 60.0  # between lines: twice as long from line to line, up to a minute


class TrainingProgress:
    """How far a run is, how good, how fast, and how long it takes yet. Shows nothing if not ``shown``: on all ranks but
    one.

    Where stderr is no terminal it gets a line after the first update and after the last one, and between them often at
    first and then once a minute.

    total: updates of the whole run; done: those made before; batch_size: pictures an update, over all processes; title:
    what is trained.
    """

    def __init__(
        self,
        total: int,
        done: int,
        batch_size: int,
        *,
        title: str = "training",
        shown: bool,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(stderr=True)
        self.total, self.first, self.batch_size, self.title, self.shown = total, done, batch_size, title, shown
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}  {task.fields[left]}"),
        )
        self._bar = _TwoLines(*columns, console=self.console, disable=not (shown and self.console.is_terminal))
        self._task = self._bar.add_task(
            title, total=total, completed=done, done=_share(done, total), left="", figures=""
        )
        self._began = self._due = time.monotonic()
        self._pause, self._waiting = FIRST_SECONDS, ""  # the line of the last update, until it is shown
        self._held_out: dict[str, float] = {}

    def __enter__(self) -> TrainingProgress:
        self._began = self._due = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        self._print(self._waiting)

    def update(self, step: int, metrics: Mapping[str, float], note: str = "") -> None:
        """``step`` updates are done now; the last one gave ``metrics``, those of held-out pictures too if there are any
        (names that begin with ``val_``)."""
        now = time.monotonic()
        seconds = self._seconds_an_update(step, now)
        left = f"{duration(seconds * (self.total - step))} left" if step < self.total else ""
        figures = [*self._figures(metrics), speed(self.batch_size / max(seconds, 1e-9))]
        done, below = _share(step, self.total), "  ".join([*figures, note]).rstrip()
        self._bar.update(self._task, completed=step, done=done, left=left, figures=below)
        self._waiting = "  ".join(part for part in (f"{self.title}: {done}", *figures, left, note) if part)
        if now >= self._due:
            self._due, self._pause = now + self._pause, min(2 * self._pause, LINE_SECONDS)
            self._print(self._waiting)

    def warn(self, message: str) -> None:
        """A line that stays."""
        if self.shown:
            self.console.print(f"warning: {message}", soft_wrap=True, highlight=False, markup=False)

    def _seconds_an_update(self, step: int, now: float) -> float:
        """The mean of this piece, without its first update, in which much is made ready, once there is another."""
        done = step - self.first
        if done == 1:
            self._second = now
            return now - self._began
        return (now - self._second) / (done - 1)

    def _figures(self, metrics: Mapping[str, float]) -> list[str]:
        self._held_out = held_out(metrics) or self._held_out
        told = in_words(self._held_out)
        return [*in_words(metrics), *(f"held out: {first}" for first in told[:1])]

    def _print(self, line: str) -> None:
        if self.shown and line and not self.console.is_terminal:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._waiting = ""


def _share(step: int, total: int) -> str:
    return f"{100 * step / total:.0f}% ({step:,} of {total:,})"


class _TwoLines(Progress):
    """A bar, and below it the figures of the last update, for which there is no room beside it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(task.fields["figures"]) for task in self.tasks)


class _Rate(ProgressColumn):
    """Pictures a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.1f} images/s")


def picture_bar(console: Console) -> Progress:
    """A bar that counts pictures, on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
