"""``hqtvae tune``: what it prints and keeps, that later commands go by it, and what it refuses before it begins."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.plan_file import PlanFile, plans_folder
from hqtvae_fast.tune import confirm, sites, timing, tuner
from hqtvae_fast.tune.batches import BatchTuning
from hqtvae_fast.tune.lock import tuning
from hqtvae_fast.tune.parent import Parent
from hqtvae_fast.tune.result import Found, Result
from hqtvae_fast.tune.sites import Site, find_sites
from hqtvae_fast.tune.tuner import Tuner

from .conftest import Run, assert_one_line_error

MODEL = (GOLDEN / "class_parallel", "--device", "cpu", "--dtype", "fp32")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def _one_choice_an_op(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_of_each(*arguments: Any) -> list[Site]:
        found = {site.op: site for site in find_sites(*arguments) if site.is_choice}
        return list(found.values())

    monkeypatch.setattr(sites, "find_sites", first_of_each)


@pytest.mark.slow
def test_a_file_in_8_bits_goes_by_the_plan_that_was_made_of_it(run: Run, tmp_path: Path) -> None:
    assert run("convert", GOLDEN / "class_parallel", tmp_path / "int8", "--quantize", "int8").code == 0
    given = ("tune", tmp_path / "int8", "--device", "cpu", "--budget", "0.05", "--batches", "1")
    assert run(*given).code == 0
    (file,) = plans_folder().glob("*.json")
    assert PlanFile.read(file).facts["quantization"] == "int8"
    assert HQTVAEPipeline.from_pretrained(tmp_path / "int8", device="cpu").plan.id == PlanFile.read(file).plan.id
    assert_one_line_error(
        run(*given, "--quantize", "fp8"), "expected int8, which this checkpoint's weights are in; got fp8"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_one_choice_an_op")
def test_a_tiny_model_is_tuned_on_a_cpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "DUEL_SECONDS", 0.05)
    monkeypatch.setattr(timing, "MOST", timing.FEWEST)  # of whole runs
    monkeypatch.setitem(confirm.ENGINE, "cpu", (("chunk=1",),))
    result = run("tune", *MODEL, "--batches", "2", "--budget", "3")
    assert result.code == 0
    assert "Proving variants" in result.err
    assert "same bits" in result.out
    assert "refused" not in result.out
    assert "wrote " in result.out
    (file,) = plans_folder().glob("*.json")
    found = PlanFile.read(file)
    assert found.kind == "tuned"
    assert found.facts["dtype"] == "float32"
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32")
    assert pipe.plan.id == found.plan.id
    assert (found.batches, found.best, list(found.seconds)) == ((1, 2), 2, [2])
    assert re.search(r"batch 2: .* images/s, the fastest", result.out)


def test_batch_sizes_alone_make_a_plan(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "find_sites", lambda *arguments: [])
    monkeypatch.setitem(confirm.ENGINE, "cpu", ())
    result = run("tune", *MODEL, "--batches", "1,3", "--json")
    assert result.code == 0
    content = json.loads(result.out)
    (file,) = plans_folder().glob("*.json")
    found = PlanFile.read(file)
    assert (found.kind, found.choices, found.engine) == ("tuned", {}, {})
    assert set(found.seconds) <= {1, 3}
    assert found.seconds == {int(size): taken for size, taken in content["seconds_by_batch"].items()}
    assert (list(found.batches), found.best) == (content["batches"], content["best_batch"])
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32")
    assert pipe.plan.best == found.best


@pytest.mark.parametrize("reason,words", [("memory", "not enough memory for 1 image at once"), ("crashed", "killed")])
def test_a_model_that_does_not_run_has_no_batch_sizes(
    run: Run, monkeypatch: pytest.MonkeyPatch, reason: str, words: str
) -> None:
    monkeypatch.setattr(sites, "find_sites", lambda *arguments: [])
    monkeypatch.setattr(Parent, "ask", lambda self, job, seconds: {"status": reason, "reason": "killed by SIGSEGV"})
    result = run("tune", *MODEL, "--batches", "1")
    assert result.code == 0
    assert f"stopped: batch sizes are not timed: {words}" in result.out
    assert "no plan is written" in result.out
    assert not list(plans_folder().glob("*.json"))


def test_what_was_not_reached_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tuner, "run", lambda self: cut_short())
    result = run("tune", *MODEL, "--batches", "1")
    assert result.code == 0
    assert "not tried for lack of time: 3 candidates\n" in result.out
    assert "not verified, so passed over until a larger --budget reaches them: bias_gelu triton\n" in result.out
    content = json.loads(run("tune", *MODEL, "--batches", "1", "--json").out)
    assert (content["unreached"], content["untried"]) == (["bias_gelu triton"], 3)
    (file,) = plans_folder().glob("*.json")
    assert PlanFile.read(file).unreached == {"bias_gelu triton"}
    assert "Not reached, passed over" in run("plan", "show", file).out


def cut_short() -> Result:
    """Of a GPU."""
    site = Site(("bias_gelu | 1",), "bias_gelu", [], ("triton", "torch"), "triton", 1, None)
    tuning = BatchTuning({1: 1.0})
    return Result([Found(site)], True, untried=Counter({"bias_gelu triton": 1, "bias_gelu torch": 2}), tuning=tuning)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_choice_an_op")
def test_variants_are_verified_alone(run: Run) -> None:
    result = run("tune", *MODEL, "--batches", "1", "--budget", "3", "--verify-only", "--json")
    assert result.code == 0
    content = json.loads(result.out)
    assert "group_norm_silu torch" in content["verified"]
    assert (content["refused"], content["choices"], content["plan"]) == ({}, [], None)


@pytest.mark.slow
def test_a_dry_run_needs_no_gpu_and_writes_nothing(run: Run) -> None:
    sizes = ("--batches", "1", "2")  # as several words, and before other options
    result = run("tune", "--preset", "S", *sizes, "--dry-run", "--device", "cuda", "--pretend", "h100")
    assert result.code == 0
    assert "triton/64x2" in result.out
    assert "prediction, not measured" in result.out
    assert not plans_folder().exists()


def test_two_at_once(run: Run) -> None:
    with tuning(plans_folder()):
        assert_one_line_error(run("tune", *MODEL, "--budget", "0.1"), "another `hqtvae tune` is at work (process ")


def test_a_cache_folder_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert_one_line_error(run("tune", *MODEL), "expected a folder to write into")


@pytest.mark.parametrize(
    "arguments,words",
    [
        ((*MODEL, "--batches", "0"), "--batches: expected"),
        ((*MODEL, "--batches", "3-1"), "--batches: expected"),
        ((), "expected a CHECKPOINT or --preset"),
        ((*MODEL, "--preset", "S"), "expected a CHECKPOINT or --preset"),
        ((*MODEL, "--pretend", "h100"), "--pretend: expected --dry-run"),
        ((GOLDEN / "stage1_conv2", "--device", "cpu"), "stage 1 only: there is nothing to draw"),
        (("--preset", "Z", "--device", "cpu"), "preset: expected one of"),
    ],
)
def test_bad_arguments(run: Run, arguments: tuple[object, ...], words: str) -> None:
    assert_one_line_error(run("tune", *arguments), words)


@pytest.mark.parametrize(
    "quantize,found", [pytest.param((), False, marks=pytest.mark.slow), (("--quantize", "int8"), True)]
)
def test_8_bit_keys_and_values_are_a_candidate_where_8_bits_are_asked_for(
    run: Run, quantize: tuple[str, ...], found: bool
) -> None:
    model = (GOLDEN / "class_parallel", "--dtype", "bf16", *quantize)
    result = run("tune", *model, "--batches", "1", "--dry-run", "--device", "cuda", "--pretend", "h100", "--json")
    assert result.code == 0
    defaults = {row["default"] for row in json.loads(result.out)["choices"]}
    assert ("triton/int8" in defaults) == found
