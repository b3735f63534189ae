"""Verdicts: on made-up times with known losses, on files, and on what is counted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from benchmarks.gate import verdicts
from benchmarks.gate.pairs import Paired
from benchmarks.gate.verdicts import CannotCompare, Change, between_files, between_sides, judge, to_markdown
from benchmarks.measuring import schema
from benchmarks.measuring.environment import describe
from benchmarks.measuring.schema import Results, Row
from benchmarks.measuring.stats import ALPHA, paired_shift

ENVIRONMENT = describe(torch.device("cpu"), "ops")
THRESHOLD = 0.03


def made_up(random, loss, rounds=12, turns=16, processes=0.008, noise=0.03):
    """Two sides, seconds by process and turn: noise of the process, of the turn, a drift that both see, and now and
    then a turn that something else has made much longer."""
    samples = []
    drift = np.exp(np.cumsum(random.normal(0, 0.01, (rounds, turns)), axis=1))
    for slower in (0.0, loss):
        each = np.exp(random.normal(0, processes, (rounds, 1)) + random.normal(0, noise, (rounds, turns)))
        each *= np.where(random.random((rounds, turns)) < 0.1, 1.5, 1.0)
        samples.append({"step": (0.01 * (1 + slower) * drift * each).tolist()})
    return Paired(samples)


def alarm_rate(loss, trials=200, turns=16):
    random = np.random.default_rng(round(loss * 1000))
    found = [judge(between_sides(made_up(random, loss, turns=turns)), THRESHOLD)[0].is_loss for _ in range(trials)]
    return sum(found) / trials


def test_losses_are_found_and_nothing_is_not():
    rates = {loss: alarm_rate(loss) for loss in (0.0, 0.01, 0.03, 0.10)}
    assert rates[0.0] <= 0.03  # ALPHA is 0.01: of 200 runs 2 are expected, more than 6 once in 200
    assert rates[0.01] <= 0.15  # below half the threshold: seldom more than a matter of luck
    assert rates[0.03] >= 0.90
    assert rates[0.10] == 1


@pytest.mark.parametrize("turns", [1, 3])
def test_few_turns_make_no_false_alarms(turns):
    """They cost power: the ranks' own rate holds for any number of turns, as long as no side is favoured."""
    assert alarm_rate(0.0, turns=turns) <= 0.03


def test_gains_are_no_alarm():
    random = np.random.default_rng(0)
    assert [judge(between_sides(made_up(random, -0.1)), THRESHOLD)[0].word for _ in range(20)] == ["faster"] * 20


def test_many_rows_do_not_make_false_alarms():
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.03, (200, 20, 12))
    alarms = [
        any(
            v.is_loss
            for v in judge(
                [Change(f"{n}", "ours", "s", 1, 1, paired_shift(row)) for n, row in enumerate(rows)], THRESHOLD
            )
        )
        for rows in noise
    ]
    assert sum(alarms) / len(alarms) <= 0.03


def test_a_significant_trifle_is_unchanged():
    (verdict,) = judge([Change("x", "ours", "s", 1, 1.01, paired_shift([math.log(1.01)] * 10))], THRESHOLD)
    assert verdict.p < ALPHA
    assert verdict.word == "unchanged"


def test_what_noise_could_hide_is_unclear():
    wide = [0.08, -0.08] * 5
    assert judge([Change("x", "ours", "s", 1, 1, paired_shift(wide))], THRESHOLD)[0].word == "unclear"
    assert judge([Change("x", "ours", "s", 1, 1, paired_shift([0.2] * 5))], THRESHOLD)[0].word == "unclear"  # too few


def test_rounds_needed_allow_a_verdict():
    for rows in (1, 2, 50):
        pairs = paired_shift([0.1] * verdicts.rounds_needed(rows))
        found = judge([Change(f"{n}", "ours", "s", 1, 1, pairs) for n in range(rows)], THRESHOLD)
        assert all(verdict.is_loss for verdict in found)


# --------------------------------------------------------------------------------------------------------------- files


def results(rows, **environment):
    return Results("ops", {**ENVIRONMENT, **environment}, tuple(rows))


def timed(scale, name="op, case", processes=6, **changes):
    random = np.random.default_rng(round(scale * 1e6))
    samples = scale * np.exp(random.normal(0, 0.005, (processes, 10)))
    return Row(name, "ours", tuple(map(tuple, samples.tolist())), **changes)


def test_processes_are_the_units_where_there_are_enough():
    (change,) = between_files(results([timed(1.0)]), results([timed(1.05)]))
    assert change.shift.units == 6
    assert change.note == ""
    assert judge([change], THRESHOLD)[0].word == "slower"


def test_runs_of_one_process_say_so():
    (change,) = between_files(results([timed(1.0, processes=1)]), results([timed(1.05, processes=1, unfit="heat")]))
    assert change.shift.units == 10
    assert change.note == "runs, not processes, are compared: fewer than 5 processes a side; new: heat"


def test_other_devices_and_suites_are_refused():
    base = results([timed(1.0)])
    with pytest.raises(CannotCompare, match=r"device: .* and abacus"):
        between_files(base, results([timed(1.0)], device="abacus"))
    with pytest.raises(CannotCompare, match="one suite; got ops and train"):
        between_files(base, Results("train", ENVIRONMENT, base.rows))
    with pytest.raises(CannotCompare, match="no row of ours"):
        between_files(base, results([timed(1.0, "other")]))
    assert verdicts.missing(base, results([timed(1.0, "other")])) == [
        "only in base: op, case / ours",
        "only in new: other / ours",
    ]


def test_what_is_counted_holds_on_any_machine():
    def counted(value):
        return Row("launches", "ours", ((value,),), unit="launches", tolerance=0.1)

    def word(base, new):
        return judge(between_files(results([counted(base)]), results([counted(new)], device="abacus")), 0.03)[0].word

    assert word(10, 11) == "same"
    assert word(10, 12) == "more"
    assert word(0, 1) == "more"
    assert word(10, 9) == "less"


def test_the_newest_baseline_of_the_device_is_taken(tmp_path):
    for name, facts in {
        "old": {"date": "2026-01-01"},
        "new": {"date": "2026-02-01"},
        "other": {"date": "2026-03-01", "device": "abacus"},
    }.items():
        schema.write(results([timed(1.0)], **facts), tmp_path / f"{name}.json")
    assert verdicts.stored_baseline(tmp_path, results([])).name == "new.json"
    with pytest.raises(CannotCompare, match="results of ops on quill; got ops on"):
        verdicts.stored_baseline(tmp_path, results([], device="quill"))


def test_the_summary():
    changes = [
        Change("step", "ours", "s", 0.010, 0.011, paired_shift([math.log(1.1)] * 10), note="warm"),
        Change("launches", "tiny", "launches", 100, 90),
        Change("breaks", "ours", "breaks", 0, 0),
    ]
    text = to_markdown(judge(changes, THRESHOLD), "main against .", THRESHOLD, ["here"])
    assert "**1 of 3 rows lost** (threshold 3.0%)." in text
    assert "| step | 10 ms | 11 | +10.0% | +10.0% to +10.0% | 0.00098 | **slower** |" in text
    assert "| launches / tiny | 100 launches | 90 | -10.0% |  |  | less |" in text
    assert text.endswith("\n\n- 1 counts are the same\n- here\n- step: warm\n")
    assert json.dumps(text)
