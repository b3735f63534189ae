"""benchmarks/studies/paper.md names what exists, and the ablations' table is the one that their figures make."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from hqtvae_fast.train.presets import STAGES, load_preset, preset_names

ROOT = Path(__file__).parents[2]
PAPER = (ROOT / "benchmarks" / "studies" / "paper.md").read_text(encoding="utf-8")
ROWS = {1: 13, 2: 5, 3: 8, 4: 4, 5: 5, 6: 4}  # of the paper's tables; 5 with the released bidirectional model


def section(table: int) -> str:
    return PAPER.split(f"## Table {table}: ")[1].split("\n## ")[0]


@pytest.mark.parametrize("table", ROWS)
def test_every_row_of_the_paper_is_there(table):
    first = re.split(r"\n\n", section(table)[section(table).index("\n| ") :].strip())[0]
    assert len(first.splitlines()) - 2 == ROWS[table]


def test_presets_that_it_names_exist():
    known = {name for stage in STAGES for name in preset_names(stage)}
    named = set(re.findall(r"--preset ([\w-]+)", PAPER))
    named |= set(re.findall(r"`([\w-]+)`", " ".join(re.findall(r"\| `[\w-]+`, `[\w-]+` \|", section(6)))))
    assert len(named) >= 15
    assert named <= known


def test_every_preset_of_a_table_is_named():
    of_tables = {
        name for stage in STAGES for name in preset_names(stage) if load_preset(stage, name).source.startswith("Table")
    }
    assert {name for name in of_tables if not re.search(rf"[ `]{re.escape(name)}[`, ]", PAPER)} == set()


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    yield
    for name in ("ablations", "ablation_runs", "ablation_table", "ablation_measure"):
        sys.modules.pop(name, None)


def test_the_ablations_table_is_of_their_figures(tools):
    from ablation_table import markdown

    results = json.loads((ROOT / "benchmarks" / "studies" / "ablations.json").read_text())
    assert (ROOT / "benchmarks" / "studies" / "ablations.md").read_text(encoding="utf-8") == markdown(results)


def test_ablations_differ_in_what_their_table_varies(tools):
    from ablation_runs import RUNS

    from hqtvae_fast.train.config import Stage1Run, Stage2Run, read_run

    names = [run.name for run in RUNS]
    for place, run in enumerate(RUNS):
        assert {run.vae, run.prior} - {None} <= set(names[:place]), "what a run needs comes before it"
        cls = Stage1Run if run.stage == "stage1" else Stage2Run
        begin = {} if run.vae is None else {"vae": "vae"}
        read_run(cls, None, {**run.config(), **begin, "data": "train.tar", "out": "out"})
    for stage in STAGES:
        budgets = {(run.config()["steps"], run.config()["batch_size"]) for run in RUNS[:-1] if run.stage == stage}
        assert len(budgets) == 1, f"{stage}: one budget for all, but for the long run"
