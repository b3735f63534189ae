"""What a run shows of itself."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hqtvae_fast.train.loop import progress as module
from hqtvae_fast.train.loop.progress import TrainingProgress
from hqtvae_fast.train.words import duration, in_words

STAGE1 = {"loss": 0.0123, "mse": 0.01, "psnr": 21.34, "usage_0": 0.83, "perplexity_0": 9.0, "usage_1": 0.61}


@pytest.fixture
def clock(monkeypatch):
    """A clock to be set by hand."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def shown(clock, *, terminal=False, main=True, first=10, last=20, seconds=20.0, note="", width=160, **first_update):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width)
    with TrainingProgress(40, first, 8, title="stage 1", shown=main, console=console) as bar:
        for step in range(first + 1, last + 1):
            clock[0] += first_update.get("slow", seconds) if step == first + 1 else seconds
            bar.update(step, {**STAGE1, "loss": 1 / step}, note)
    return file.getvalue()


def test_a_file_gets_lines_that_become_rarer(clock):
    lines = shown(clock, note="1 broken").splitlines()
    told = "PSNR 21.3 dB  codes in use: 83% top, 61% bottom  0.4 images/s"
    assert lines == [
        f"stage 1: 28% (11 of 40)  loss 0.09091  {told}  10 minutes left  1 broken",
        f"stage 1: 30% (12 of 40)  loss 0.08333  {told}  9 minutes left  1 broken",
        f"stage 1: 32% (13 of 40)  loss 0.07692  {told}  9 minutes left  1 broken",
        f"stage 1: 35% (14 of 40)  loss 0.07143  {told}  9 minutes left  1 broken",
        f"stage 1: 40% (16 of 40)  loss 0.0625  {told}  8 minutes left  1 broken",
        f"stage 1: 48% (19 of 40)  loss 0.05263  {told}  7 minutes left  1 broken",
        f"stage 1: 50% (20 of 40)  loss 0.05  {told}  7 minutes left  1 broken",
    ]


def test_a_file_gets_a_line_of_the_last_update(clock):
    lines = shown(clock, last=40, seconds=0.5).splitlines()
    assert [line.split("(")[1].split(")")[0] for line in lines] == [f"{step} of 40" for step in (11, 21, 40)]
    assert lines[-1].endswith("16 images/s")


def test_the_first_update_s_start_up_is_no_measure_of_the_others(clock):
    lines = shown(clock, first=0, last=20, slow=60.0, seconds=1.0).splitlines()
    assert lines[-1].endswith("8 images/s  20 seconds left")


def test_a_terminal_gets_a_bar_and_a_line_of_figures(clock):
    text = shown(clock, terminal=True, width=80)
    assert "50% (20 of 40)" in text
    assert "7 minutes left" in text
    assert "loss 0.05  PSNR 21.3 dB  codes in use: 83% top, 61% bottom  0.4 images/s" in text
    assert "…" not in text


def test_other_ranks_are_silent(clock):
    assert shown(clock, main=False) == ""


def test_held_out_figures_stay_until_there_are_newer_ones(clock):
    file = io.StringIO()
    with TrainingProgress(9, 0, 8, title="stage 1", shown=True, console=Console(file=file, width=200)) as bar:
        for step, more in enumerate(({}, {"val_psnr": 19.84, "val_usage_0": 0.5}, {}, {}), start=1):
            clock[0] += 10
            bar.update(step, {**STAGE1, **more}, "")
    assert ["held out: PSNR 19.8 dB" in line for line in file.getvalue().splitlines()] == [False, True, True, True]


def test_warnings_are_lines_of_their_own(clock):
    file = io.StringIO()
    with TrainingProgress(9, 0, 8, title="stage 1", shown=True, console=Console(file=file, width=80)) as bar:
        bar.warn("the loss rises " * 9)
    assert file.getvalue() == f"warning: {'the loss rises ' * 9}\n"


def test_figures_in_words():
    stage2 = {"loss": 4.25, "level_0": 3.0, "level_1": 4.0, "level_2": 4.567, "text": 1.2, "gradient_norm": 3.0}
    assert in_words(stage2) == [
        "loss 4.25",
        "nats a code: 3.00 top, 4.00 middle, 4.57 bottom",
        "nats a token of text: 1.20",
    ]
    assert in_words({"loss": 2.0, "level_0": 3.0}) == ["loss 2", "nats a code: 3.00"]
    assert in_words({"psnr": 20.0, "usage_0": 0.004, "usage_1": 0.9999}) == [
        "PSNR 20.0 dB",
        "codes in use: 0.4% top, 99.9% bottom",
    ]
    assert in_words({"usage_0": 1.0, "usage_1": 0.0}) == ["codes in use: 100% top, 0% bottom"]
    assert in_words({}) == []


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.4, "0 seconds"),
        (1, "1 second"),
        (59, "59 seconds"),
        (89, "89 seconds"),
        (95, "2 minutes"),
        (360, "6 minutes"),
        (5000, "83 minutes"),
        (9000, "2.5 hours"),
        (1e6, "12 days"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
