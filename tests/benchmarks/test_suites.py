"""The suites that time whole calls, on the tiny model: that they run, check their arguments and write the one form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.entrants.ours import BENCHMARK_PRESETS, TINY
from benchmarks.measuring import calls, schema
from benchmarks.measuring.calls import Entrant
from benchmarks.suites import train
from benchmarks.suites.engine import AS_IT_IS, _sampler
from hqtvae_fast import cli
from hqtvae_fast.plan_file import Measured, PlanFile

CPU = torch.device("cpu")


def run(suite, *arguments):
    return cli.main(["bench", suite, "--preset", "tiny", "--device", "cpu", *arguments])


@pytest.mark.parametrize(
    "suite,options,names",
    [
        ("generate", ("--baselines", "none"), ["tiny, batch 2: draw", "tiny, batch 2: decode", "tiny, batch 2: total"]),
        ("train", ("--stage", "1"), ["tiny, stage 1, batch 2, fp32: update"]),
        ("train", ("--stage", "2"), ["tiny, stage 2, batch 2, fp32: update"]),
        ("encode", (), ["tiny, batch 2: encode"]),
        ("engine", ("--what", "draw", "decode"), ["tiny, batch 2: draw", "tiny, batch 2: decode"]),
    ],
)
def test_a_suite_writes_what_it_measured(suite, options, names, tmp_path, capsys):
    file = tmp_path / "r.json"
    assert run(suite, "--batch", "2", "--repeats", "2", "--json", str(file), *options) == 0, capsys.readouterr().err
    results = schema.read(file)
    assert results.benchmark == suite
    assert results.environment["command"].startswith(f"python -m benchmarks.suites.{suite}")
    assert [row.name for row in results.rows] == names
    assert all(len(row.runs) == 2 and row.work["images"] == 2 and row.work["peak_memory"] > 0 for row in results.rows)
    assert "images/s" in capsys.readouterr().out


@pytest.mark.slow
def test_the_engine_is_run_in_several_ways(tmp_path, capsys):
    file, ways = tmp_path / "r.json", ("chunk=1", "captured,overlap=off")
    arguments = ("--batch", "2", "--repeats", "1", "--what", "stream", "--engine", *ways, "--json", str(file))
    assert run("engine", *arguments) == 0, capsys.readouterr().err
    rows = schema.read(file).rows
    assert [row.entrant for row in rows] == ["as it is", *ways]
    assert {row.name for row in rows} == {"tiny, batch 2: stream"}
    assert {row.work["images"] for row in rows} == {8}
    assert run("engine", "--engine", "faster") == 2
    assert "got 'faster'" in capsys.readouterr().err


def test_plans_are_run_beside_the_engine_as_it_is(tmp_path, capsys):
    ours, file, plan = _sampler("tiny", CPU), tmp_path / "r.json", tmp_path / "tuned.json"
    facts = ours.pipeline.plan_facts()
    PlanFile("tuned", facts, engine={1: Measured("modules")}).write(plan)
    arguments = ("--batch", "2", "--repeats", "1", "--what", "draw", "--plan", str(plan), "--json", str(file))
    assert run("engine", *arguments) == 0, capsys.readouterr().err
    assert [row.entrant for row in schema.read(file).rows] == [AS_IT_IS, "tuned.json"]
    PlanFile("tuned", {**facts, "device": "another one"}).write(plan)
    assert run("engine", *arguments) != 0
    assert "another one" in (said := capsys.readouterr().err)
    assert "--accept-fact device" in said
    assert run("engine", *arguments, "--accept-fact", "device") == 0, capsys.readouterr().err


def test_an_update_trains():
    """What is timed is the real thing: weights move, and the loss falls on the same pictures."""
    task = train.make_task(2, "tiny", CPU, "no", checkpointing=False)
    batch = train.make_batch("tiny", 4, CPU)
    before = {name: value.clone() for name, value in task.transformer.named_parameters()}
    losses = [float(task.update([batch], step)["loss"]) for step in range(8)]
    assert losses[-1] < losses[0]
    assert any(not torch.equal(value, before[name]) for name, value in task.transformer.named_parameters())


def test_text_models_are_trained_too(monkeypatch):
    text = replace(TINY.transformer, condition="text", prefix_vocab_size=6000, prefix_length=8)
    monkeypatch.setitem(BENCHMARK_PRESETS, "tiny-text", replace(TINY, transformer=text))
    task = train.make_task(2, "tiny-text", CPU, "no", checkpointing=False)
    batch = train.make_batch("tiny-text", 3, CPU)
    before = task.transformer.prefix.embedding.weight.clone()
    assert float(task.update([batch], 0)["text"]) > 0
    task.update([batch], 1)
    assert not torch.equal(task.transformer.prefix.embedding.weight, before)


def test_what_cannot_be_trained_is_said(capsys):
    assert cli.main(["bench", "train", "--preset", "S-text", "--precision", "int8"]) == 2
    assert "expected one of no, bf16, fp16; got 'int8'" in " ".join(capsys.readouterr().err.split())


def test_entrants_take_turns():
    said = []
    entrants = [Entrant("a", lambda: said.append("a")), Entrant("b", lambda: said.append("b"), ours=False)]
    rows = calls.measure("x", entrants, 1, CPU, 3, {"batch": 1})
    assert "".join(said) == "aabb" + "ababab"
    assert [(row.entrant, row.ours, len(row.runs)) for row in rows] == [("a", True, 3), ("b", False, 3)]
    assert rows[0].work["batch"] == 1
