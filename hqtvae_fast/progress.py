"""What a user sees of long work: bars and lines; and who hears of a drawing's steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

OnStep = Callable[[int, int], Any]
"""Called with the steps done, 1, 2, ..., and how many there will be."""


class StepError(Exception):
    """What the caller's function raised, on its way through an engine that would take it for its own failure."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextmanager
def drawing_steps(images: int, steps: int, on_step: OnStep | None, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Of a drawing of so many images. Yields what each step calls: it moves the bar on, and tells ``on_step``; what
    that raises comes out as it is."""
    done, label = 0, f"Drawing {images} image{'s' if images > 1 else ''}"
    with drawing_bar(label, steps, shown=shown) as advance:

        def step() -> None:
            nonlocal done
            done += 1
            advance()
            if on_step is None:
                return
            try:
                on_step(done, max(steps, done))  # a batch that memory did not suffice for is drawn again, in more steps
            except Exception as error:
                raise StepError(error) from error

        try:
            yield step
        except StepError as error:
            raise error.reason from None


def say(line: str) -> None:
    """To the user, on stderr."""
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(line)


@contextmanager
def counting_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal or a notebook. Yields what is told how many are done, of how many."""
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield lambda done, total: None
        return
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def drawing_bar(label: str, steps: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """A bar of ``steps`` steps on stderr, where that is a terminal or a notebook. Yields what each step calls."""
    console = Console(stderr=True)
    if not (shown and (console.is_terminal or console.is_jupyter)):
        yield lambda: None
        return
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=steps)
        yield lambda: bar.advance(task)
