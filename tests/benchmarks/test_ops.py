"""``python -m benchmarks.suites.ops`` on ops made up for it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.measuring import memory
from benchmarks.suites import op_timing, ops
from benchmarks.suites.op_timing import Outcome, Plan, measure
from hqtvae_fast.backend import VARIABLE, Backend, choose
from hqtvae_fast.hardware import TERA, Device
from hqtvae_fast.ops.spec import Case, Cost, Spec, all_specs

PEAKS = Device("abacus", flops=1 * TERA, bandwidth=1e9, memory=10**9)
CPU = torch.device("cpu")
BACKENDS = (
    Backend("triton", lambda x: x, lambda x: "needs a GPU"),
    Backend("torch", lambda x: x * 2),
    Backend("slow", lambda x: (time.sleep(0.02), x + x)[1]),
)


def double(x, backend=None):
    return choose("double", BACKENDS, x, backend=backend).backend.run(x)


def check(got, wanted, inputs):
    assert torch.equal(got, wanted), "not doubled"


SPEC = Spec(
    op="double",
    cases=(Case("large", {"N": 1000}),),
    small=(Case("small", {"N": 3}),),
    make_inputs=lambda case, device, seed: (torch.ones(case["N"], device=device),),
    run=double,
    reference=lambda x: x + x,
    check=check,
    cost=lambda case: Cost(case["N"], 8 * case["N"]),
    baselines={"nothing at all": lambda x: None, "asleep": lambda x: time.sleep(0.01)},
    backends=BACKENDS,
)
PLAN = Plan(CPU, PEAKS, repeats=5)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def measured(spec=SPEC, plan=PLAN):
    outcome = Outcome()
    measure(spec, spec.cases[0], plan, outcome)
    return outcome


def test_backends_that_can_run_and_baselines_are_timed():
    outcome = measured()
    rows = {row.what: row for row in outcome.rows}
    assert list(rows) == ["ours: torch", "ours: slow", "nothing at all", "asleep"]
    assert [row.ours for row in outcome.rows] == [True, True, False, False]
    assert all(len(row.seconds) == 5 for row in outcome.rows)
    assert rows["ours: torch"].ratio == 1
    assert rows["asleep"].ratio > 1
    assert rows["asleep"].median >= 0.01
    assert rows["asleep"].floor == pytest.approx(8e-6)
    assert outcome.notes == ["left out: double, large: double: the caller asked for backend 'triton', "
                             "which cannot run: needs a GPU"]  # fmt: skip
    assert not outcome.failures
    assert not outcome.unchecked


def test_turns_are_taken():
    said = []
    spec = replace(
        SPEC,
        run=lambda x, backend=None: said.append("ours"),
        baselines={"theirs": lambda x: said.append("theirs")},
        backends=(),
    )
    measured(spec, replace(PLAN, check=False))
    assert said == ["ours", "ours", "theirs", "theirs", *["ours", "theirs"] * 5]


def test_those_faster_than_ours_come_first():
    outcome = measured(replace(SPEC, backends=(), run=lambda x, backend=None: (time.sleep(0.002), x + x)[1]))
    assert [row.what for row in ops.ordered(outcome.rows)] == ["nothing at all", "ours", "asleep"]


def test_one_backend_that_was_asked_for():
    outcome = measured(plan=replace(PLAN, backends=("slow",)))
    assert [row.what for row in outcome.rows] == ["ours: slow", "nothing at all", "asleep"]
    assert outcome.rows[0].ratio == 1


def test_a_long_run_is_repeated_less_often(monkeypatch):
    monkeypatch.setattr(op_timing, "SECONDS_EACH", 0.001)
    assert {len(row.seconds) for row in measured().rows if row.what in ("asleep", "ours: slow")} == {3}


def test_what_takes_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(op_timing, "LONGEST_CALL", 0.015)
    outcome = measured()
    assert [row.what for row in outcome.rows] == ["ours: torch", "nothing at all", "asleep"]
    assert outcome.notes[-1] == "left out: double, large: ours: slow: a call takes 0 s"


def test_notes_are_gathered_by_reason():
    notes = [f"left out: double, {case}: needs a GPU" for case in ("a", "b, c")] + ["left out: double, a: no", "odd"]
    assert ops.gathered(notes) == ["left out: double: needs a GPU (2 cases)", "left out: double, a: no", "odd"]


def test_a_wrong_result_is_a_failure_and_not_timed():
    outcome = measured(replace(SPEC, run=lambda x, backend=None: x, backends=()))
    assert outcome.rows == []
    assert outcome.failures == ["double, large: ours is wrong, the case is not timed: not doubled"]


def test_what_is_not_checked_is_said():
    wrong = replace(SPEC, run=lambda x, backend=None: x, backends=())
    outcome = measured(wrong, replace(PLAN, check=False))
    assert outcome.unchecked == ["double, large: --no-check"]
    assert outcome.rows
    outcome = measured(replace(wrong, cost=lambda case: Cost(1e15, 1)))
    assert "the reference would take about" in outcome.unchecked[0]
    assert outcome.rows


def test_an_op_that_writes_to_its_inputs_is_checked_on_inputs_of_its_own():
    outcome = measured(replace(SPEC, run=lambda x, backend=None: x.mul_(2), reference=lambda x: x.mul_(2), backends=()))
    assert not outcome.failures


def test_a_case_too_large_is_refused_in_one_line():
    outcome = measured(replace(SPEC, cost=lambda case: Cost(1, 1e18)))
    assert outcome.rows == []
    (note,) = outcome.notes
    assert note.startswith("refused: double, large needs at least")
    assert "\n" not in note


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_what_allocates_too_much_is_left_out_and_the_rest_timed():
    too_much = int(1.5 * memory.free_bytes(CPU))
    hog = {"hog": lambda x: torch.empty(too_much, dtype=torch.int8), "asleep": lambda x: time.sleep(0.001)}
    outcome = measured(replace(SPEC, baselines=hog, backends=()))
    assert [row.what for row in outcome.rows] == ["ours", "asleep"]
    (note,) = outcome.notes
    assert note.startswith("left out: double, large: hog does not fit in memory")
    assert "\n" not in note


def test_a_baseline_that_fails_costs_its_own_row_only():
    outcome = measured(replace(SPEC, baselines={"broken": lambda x: 1 / 0, "asleep": lambda x: time.sleep(0.001)}))
    assert [row.what for row in outcome.rows] == ["ours: torch", "ours: slow", "asleep"]
    assert outcome.notes[-1] == "left out: double, large: broken: ZeroDivisionError: division by zero"


def test_errors_that_are_not_about_memory_pass_the_guard():
    with pytest.raises(RuntimeError, match="shapes"), memory.guarded("x", CPU):
        raise RuntimeError("shapes differ")


def test_copies_keep_strides_and_structure():
    x = torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    (copy, (other,), number) = op_timing.map_tensors(op_timing.fresh, (x, [torch.ones(2, requires_grad=True)], 3))
    assert copy.stride() == x.stride()
    assert copy.data_ptr() != x.data_ptr()
    assert other.requires_grad
    assert other.is_leaf
    assert number == 3
    assert op_timing.num_bytes((x, [x], 3)) == 2 * x.nbytes


# ----------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def invoke(monkeypatch):
    broken = replace(SPEC, op="broken", make_inputs=lambda case, device, seed: 1 / 0)
    monkeypatch.setattr(ops, "all_specs", lambda: {"double": SPEC, "broken": broken})
    monkeypatch.setattr(ops, "peaks_and_load", lambda device: (PEAKS, {}))
    app = typer.Typer()
    app.command()(ops.ops)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_table_and_json(invoke, tmp_path):
    file = tmp_path / "ops.json"
    result = invoke("--op", "double", "--repeats", "4", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert "ours: torch" in result.output
    document = json.loads(file.read_text())
    assert document["benchmark"] == "ops"
    assert document["schema"] == 1
    assert document["environment"]["command"].startswith("python -m benchmarks.suites.ops")
    assert {"device", "torch", "git_revision", "date"} <= set(document["environment"])
    assert document["peaks"]["name"] == document["measured_peaks"]["name"] == "abacus"
    row = next(row for row in document["rows"] if row["entrant"] == "asleep")
    assert [len(process) for process in row["samples"]] == [4]
    assert row["work"]["bytes"] == 8000
    assert row["work"]["floor_seconds"] == pytest.approx(8e-6)


def test_results_are_kept_when_a_later_case_is_cut_off(monkeypatch, tmp_path):
    def cut_off(case, device, seed):
        raise KeyboardInterrupt

    specs = {"double": SPEC, "endless": replace(SPEC, op="endless", make_inputs=cut_off)}
    monkeypatch.setattr(ops, "all_specs", lambda: specs)
    monkeypatch.setattr(ops, "peaks_and_load", lambda device: (PEAKS, {}))
    with pytest.raises(KeyboardInterrupt):
        ops.ops(all_ops=True, repeats=1, json=tmp_path / "r.json")
    assert {row["work"]["op"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]} == {"double"}


def test_one_that_fails_does_not_cost_the_others_their_rows(invoke):
    result = invoke("--all", "--repeats", "1")
    assert result.exit_code == 1
    assert "broken, large: ZeroDivisionError" in result.output
    assert "ours: torch" in result.output


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((), "either --op NAME or --all"),
        (("--all", "--op", "double"), "either --op NAME or --all"),
        (("--op", "halve"), "expected one of broken, double; got halve"),
        (("--op", "double", "--case", "huge"), "expected one of 'large', 'small'; got 'huge'"),
        (("--op", "double", "--device", "abacus"), "--device"),
        (("--op", "double", "--json", "/no/such/place/x.json"), "--json: no directory"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(invoke, arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize("how", [("--case", "small"), ("--small",)])
def test_small_cases_can_be_asked_for(invoke, how):
    result = invoke("--op", "double", *how, "--repeats", "1")
    assert result.exit_code == 0
    assert "small" in result.output
    assert "large" not in result.output


def test_operations_whose_baselines_compile_are_the_last():
    """A run over its limit has then timed all others."""
    chosen = [spec.op for spec, _ in ops.select(all_specs(), [], True, None, small=True)]
    assert chosen[-1] == "nearest_code"
    assert list(dict.fromkeys(chosen))[:-1] == sorted(set(chosen) - {"nearest_code"})
