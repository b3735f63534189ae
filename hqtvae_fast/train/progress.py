"""What a run shows of itself: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

FIRST_SECONDS, LINE_SECONDS = 5.0, 60.0  # between lines: twice as long from line to line, up to a minute
SHOWN = 3  # metrics, the first ones: the loss and its largest parts


class TrainingProgress:
    """Updates done, images/s, time left and the loss. Shows nothing if not ``shown``: on all ranks but one.

    Where stderr is no terminal it gets a line after the first update and after the last one, and between them often at
    first and then once a minute.

    total: updates of the whole run; done: those made before; batch_size: pictures an update, over all processes.
    """

    def __init__(self, total: int, done: int, batch_size: int, *, shown: bool, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.total, self.first, self.batch_size, self.shown = total, done, batch_size, shown
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}  {task.fields[note]}"),
        )
        self._bar = Progress(*columns, console=self.console, disable=not (shown and self.console.is_terminal))
        self._task = self._bar.add_task("training", total=total, completed=done, rate="", note="")
        self._began = self._due = time.monotonic()
        self._pause, self._waiting = FIRST_SECONDS, ""  # the line of the last update, until it is shown

    def __enter__(self) -> TrainingProgress:
        self._began = self._due = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        self._print(self._waiting)

    def update(self, step: int, metrics: Mapping[str, float], note: str) -> None:
        """``step`` updates are done now; the last one gave ``metrics``."""
        now = time.monotonic()
        rate = f"{(step - self.first) * self.batch_size / max(now - self._began, 1e-9):,.1f} images/s"
        values = "  ".join([*(f"{name} {value:.4g}" for name, value in list(metrics.items())[:SHOWN]), note]).rstrip()
        self._bar.update(self._task, completed=step, rate=rate, note=values)
        left = (now - self._began) / (step - self.first) * (self.total - step)
        self._waiting = f"update {step:,} of {self.total:,}, {rate}, {_duration(left)} left  {values}"
        if now >= self._due:
            self._due, self._pause = now + self._pause, min(2 * self._pause, LINE_SECONDS)
            self._print(self._waiting)

    def _print(self, line: str) -> None:
        if self.shown and line and not self.console.is_terminal:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._waiting = ""


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 100 else f"{seconds / 60:,.0f} minutes"


class _Rate(ProgressColumn):
    """Pictures a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.1f} images/s")


def picture_bar(console: Console) -> Progress:
    """A bar that counts pictures, on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
