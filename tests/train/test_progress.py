"""What a run shows of itself."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hqtvae_fast.train import progress as module
from hqtvae_fast.train.progress import TrainingProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock to be set by hand."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def shown(clock, *, terminal: bool, main: bool = True, last: int = 20, seconds: float = 20.0) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=160)
    with TrainingProgress(40, 10, 8, shown=main, console=console) as bar:
        for step in range(11, last + 1):
            clock[0] += seconds
            bar.update(step, {"loss": 1 / step, "level_0": 2.0, "level_1": 3.0, "more": 4.0}, "1 broken")
    return file.getvalue()


def test_a_file_gets_lines_that_become_rarer(clock):
    lines = shown(clock, terminal=False).splitlines()
    assert lines == [
        "update 11 of 40, 0.4 images/s, 10 minutes left  loss 0.09091  level_0 2  level_1 3  1 broken",
        "update 12 of 40, 0.4 images/s, 9 minutes left  loss 0.08333  level_0 2  level_1 3  1 broken",
        "update 13 of 40, 0.4 images/s, 9 minutes left  loss 0.07692  level_0 2  level_1 3  1 broken",
        "update 14 of 40, 0.4 images/s, 9 minutes left  loss 0.07143  level_0 2  level_1 3  1 broken",
        "update 16 of 40, 0.4 images/s, 8 minutes left  loss 0.0625  level_0 2  level_1 3  1 broken",
        "update 19 of 40, 0.4 images/s, 7 minutes left  loss 0.05263  level_0 2  level_1 3  1 broken",
        "update 20 of 40, 0.4 images/s, 7 minutes left  loss 0.05  level_0 2  level_1 3  1 broken",
    ]


def test_a_file_gets_a_line_of_the_last_update(clock):
    lines = shown(clock, terminal=False, last=40, seconds=0.5).splitlines()
    assert [line.split(",")[0] for line in lines] == [f"update {step} of 40" for step in (11, 21, 40)]
    assert "16.0 images/s, 0 s left" in lines[-1]


def test_a_terminal_gets_a_bar(clock):
    text = shown(clock, terminal=True)
    assert "20/40" in text
    assert "0.4 images/s" in text
    assert "update 13" not in text


def test_other_ranks_are_silent(clock):
    assert shown(clock, terminal=False, main=False) == ""
