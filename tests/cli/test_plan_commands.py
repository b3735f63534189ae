"""``hqtvae plan``: what is kept is listed and read, plans are compared, and one moves to another machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
from conftest import GOLDEN
from PIL import Image

from hqtvae_fast.plan_file import Measured, PlanFile, plans_folder

from .conftest import Run, assert_one_line_error

CASE = GOLDEN / "class_parallel"
HERE = ("--device", "cpu", "--dtype", "fp32")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path / "cache"))


def exported(run: Run, name: str = "plan.json") -> PlanFile:
    assert run("plan", "export", CASE, name, *HERE).code == 0
    return PlanFile.read(Path(name))


def tuned(run: Run, **changes: Any) -> PlanFile:
    choices = {"sample_logits | f32[1,1,64]": Measured("cpu", "reference", 10.25, 0.5, 20.5, 1.0, True, 0.0, 1e-6)}
    own = PlanFile("tuned", exported(run).facts, choices, {1: Measured("skip_query", "")}, {"a_op b": "hung"})
    return PlanFile(**{**vars(own), **changes})


def test_what_is_kept_is_listed(run: Run) -> None:
    result = run("plan", "show")
    assert (result.code, result.err) == (0, "")
    assert re.search(r"no plans in .*plans yet: `hqtvae tune` makes them", " ".join(result.out.split()))
    tuned(run).write(Path("plan.json"))
    assert run("plan", "import", CASE, "plan.json", *HERE).code == 0
    (plans_folder() / "broken.json").write_text("{")
    result = run("plan", "show")
    assert result.code == 0
    assert tuned(run).plan.id in result.out
    assert "float32" in result.out
    assert "broken.json: expected a plan" in result.err


def test_a_file_is_shown(run: Run) -> None:
    own = tuned(run, verified=frozenset({"sample_logits triton"}))
    own.write(Path("plan.json"))
    said = run("plan", "show", "plan.json").out
    for part in (own.plan.id, "float32", "engine, batch 1", "skip_query", "by itself", "sample_logits", "reference"):
        assert part in said, part
    for part in ("10.2 ±0.5", "20.5 ±1", "same", "0 of 1e-06", "a_op b", "hung", "sample_logits triton"):
        assert part in said, part


def test_batch_sizes_are_shown_compared_and_imported(run: Run) -> None:
    one = tuned(run, batches=(2, 4, 8), best=8, seconds={1: 1.96, 4: 2.0, 8: 2.5})
    one.write(Path("one.json"))
    said = [line.split() for line in run("plan", "show", "one.json").out.splitlines()]
    shown = {line[0]: line[1:] for line in said if line and line[0].isdecimal()}
    assert shown["1"] == ["1.96", "0.5102", "not", "used"]
    assert shown["2"] == ["-", "-"]
    assert shown["8"] == ["2.5", "3.2", "the", "fastest"]
    tuned(run, best=4).write(Path("two.json"))
    said = [line.split() for line in run("plan", "diff", "one.json", "two.json").out.splitlines()]
    assert ["batches", "2", "4", "8", "-"] in said
    assert ["fastest", "batch", "8", "4"] in said
    assert run("plan", "import", CASE, "one.json", *HERE).code == 0
    (kept,) = plans_folder().glob("*.json")
    assert PlanFile.read(kept) == one


def test_a_default_plan_has_no_choices(run: Run) -> None:
    assert exported(run).kind == "default"
    assert "no choices: every operation goes by its own order" in run("plan", "show", "plan.json").out


def test_plans_are_compared(run: Run) -> None:
    tuned(run).write(Path("one.json"))
    facts = {**tuned(run).facts, "torch": "1.0"}
    tuned(run, facts=facts, engine={8: Measured("tables")}, refused={}).write(Path("two.json"))
    said = run("plan", "diff", "one.json", "two.json").out
    for part in ("torch", "1.0", "engine, batch 1", "engine, batch 8", "tables", "a_op b"):
        assert part in said, part
    assert "sample_logits" not in said
    assert "say the same (plan " in run("plan", "diff", "one.json", "one.json").out


def test_a_plan_that_was_imported_is_what_auto_takes(run: Run) -> None:
    own = tuned(run, choices={}, refused={})
    own.write(Path("other.json"))
    result = run("plan", "import", CASE, "other.json", *HERE)
    assert result.code == 0
    assert f"(plan {own.plan.id}, 0 choices)" in " ".join(result.out.split())
    drawn = run("sample", CASE, "--classes", "1", *HERE, "--out-dir", "drawn", "--save-codes", "codes.safetensors")
    assert drawn.code == 0, drawn.err
    (file,) = Path("drawn").iterdir()
    with Image.open(file) as image:
        assert json.loads(image.info["Description"])["plan"] == own.plan.id
    with safetensors.safe_open("codes.safetensors", "pt") as codes:
        assert codes.metadata()["plan"] == own.plan.id
    assert exported(run, "again.json") == own
    plain = run("sample", CASE, "--classes", "1", *HERE, "--plan", "default", "--out-dir", "plain")
    assert plain.code == 0
    with Image.open(next(Path("plain").iterdir())) as image:
        assert json.loads(image.info["Description"])["plan"] != own.plan.id


def test_other_facts_are_refused_and_may_be_accepted(run: Run) -> None:
    tuned(run, facts={**tuned(run).facts, "torch": "1.0"}).write(Path("old.json"))
    result = run("plan", "import", CASE, "old.json", *HERE)
    assert_one_line_error(result, "old.json: made under other facts: torch: expected 1.0, got", "--accept-fact torch")
    assert not plans_folder().exists()
    result = run("sample", CASE, "--classes", "1", *HERE, "--plan", "old.json", "--out", "drawn.png")
    assert_one_line_error(result, "old.json: made under other facts: torch: expected 1.0, got")
    accept = ("--accept-fact", "torch")
    assert run("sample", CASE, "--classes", "1", *HERE, "--plan", "old.json", *accept, "--out", "drawn.png").code == 0
    assert run("plan", "import", CASE, "old.json", *HERE, *accept).code == 0
    assert exported(run, "here.json").facts == exported(run).facts


def test_what_is_no_plan_is_one_line(run: Run) -> None:
    Path("notes.json").write_text("not ours")
    assert_one_line_error(run("plan", "show", "notes.json"), "notes.json: expected a plan as `hqtvae tune` writes it")
    assert_one_line_error(run("plan", "show", "nowhere.json"), "nowhere.json: No such file or directory")
    asked = run("sample", CASE, "--classes", "1", *HERE, "--plan", "fast", "--out", "drawn.png")
    assert_one_line_error(asked, "plan: expected auto, default, library, reference, or a plan's file; got 'fast'")
    tuned(run, engine={1: Measured("faster")}).write(Path("odd.json"))
    assert_one_line_error(run("plan", "import", CASE, "odd.json", *HERE), "engine: expected some of", "'faster'")


def test_other_commands_take_a_plan(run: Run) -> None:
    drawn = run("sample", CASE, "--classes", "1", *HERE, "--save-codes", "codes.safetensors", "--out", "drawn.png")
    assert drawn.code == 0
    assert run("decode", CASE, "codes.safetensors", *HERE, "--plan", "reference", "--out", "decoded.png").code == 0
    assert (
        run("encode", CASE, "drawn.png", "--device", "cpu", "--plan", "library", "--out", "again.safetensors").code == 0
    )
    with safetensors.safe_open("again.safetensors", "pt") as codes:
        assert re.fullmatch("[0-9a-f]{12}", codes.metadata()["plan"])
    assert run("reconstruct", CASE, "drawn.png", *HERE, "--plan", "library", "--out", "both.png").code == 0


def test_showing_a_plan_loads_no_torch(run: Run) -> None:
    tuned(run).write(Path("plan.json"))
    script = """
import sys
from hqtvae_fast.cli import main
code = main(["plan", "show", "plan.json"]) or main(["plan", "diff", "plan.json", "plan.json"])
sys.exit(code or ("torch" in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0
