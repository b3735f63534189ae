"""Which plan a pipeline goes by; on a GPU, a pretended one here, what is ours only once it is verified."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from conftest import GOLDEN, golden_pipeline

from hqtvae_fast import HQTVAEPipeline, backend, planning
from hqtvae_fast.engine.options import Precision
from hqtvae_fast.plan import Plan, recording
from hqtvae_fast.plan_file import Measured, PlanError, PlanFile, facts_id, plan_path, plans_folder, verified_path
from hqtvae_fast.planning import PLANS, Planner, facts_of, sources

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FACTS = {"device": "a GPU", "torch": "2.13.0", "driver": "550.1", "model": "12ab", "dtype": "bfloat16"}
TUNED = PlanFile("tuned", FACTS, {"op | 1": Measured("torch")}, {8: Measured("captured")})
VERIFIED = Plan("default", refused={"op cuda": "wrong in row 3"}, verified=frozenset({"op triton"}))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path))
    monkeypatch.setattr(planning, "device_name", lambda device: "a GPU")


def never():
    raise AssertionError("nothing is to be verified")


def find(asked="auto", device=CPU, facts=FACTS, verify=never, accept=()):
    return Planner(asked, accept).find(lambda: facts, device, verify)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ----------------------------------------------------------------------------------------------------------- which one


def test_without_any_the_default(quiet):
    assert find() is find("default") is PLANS["default"]
    assert find("library") is PLANS["library"]
    assert find("reference").kind == "reference"
    own = Plan("tuned", {"op | 1": "torch"})
    assert find(own) is own


def test_auto_takes_the_tuned_one_whose_facts_are_equal(quiet):
    TUNED.write(plan_path(FACTS))
    assert find() == TUNED.plan
    assert find("default") is PLANS["default"]
    assert find(facts={**FACTS, "dtype": "float32"}) is PLANS["default"]  # another run, and no word about it


def test_one_that_comes_with_the_package_is_taken_too(monkeypatch, tmp_path, quiet):
    shipped = tmp_path / "assets"
    monkeypatch.setattr(planning, "SHIPPED", shipped)
    TUNED.write(shipped / f"{facts_id(FACTS)}.json")
    assert find() == TUNED.plan


def test_a_plan_that_an_update_has_outdated_is_told_of():
    TUNED.write(plan_path(FACTS))
    newer = {**FACTS, "torch": "2.14.0", "driver": "560.2"}
    with pytest.warns(
        UserWarning, match=r"torch: expected 2\.13\.0, got 2\.14\.0; driver: .*`hqtvae tune` is run again"
    ):
        assert find(facts=newer) is PLANS["default"]


@pytest.mark.parametrize("text", ["", "{", '{"format": "batches"}'])
def test_a_broken_file_is_told_of_and_stays(text):
    plans_folder().mkdir()
    plan_path(FACTS).write_text(text)
    with pytest.warns(UserWarning, match=rf"{plan_path(FACTS).name}: expected a plan .*: going by the default plan"):
        assert find() is PLANS["default"]
    assert plan_path(FACTS).read_text() == text


def test_an_engines_text_that_is_none_is_told_of():
    PlanFile("tuned", FACTS, engine={8: Measured("faster")}).write(plan_path(FACTS))
    with pytest.warns(UserWarning, match=r"engine: expected some of captured, .*; got 'faster': going by the default"):
        assert find() is PLANS["default"]


def test_a_file_that_was_asked_for_holds_under_its_facts_alone(tmp_path, quiet):
    file = tmp_path / "plan.json"
    TUNED.write(file)
    assert find(file) == find(str(file)) == TUNED.plan
    with pytest.raises(
        PlanError, match=rf"{re.escape(str(file))}: made under other facts: driver: expected 550\.1, got 1"
    ):
        find(file, facts={**FACTS, "driver": "1"})
    assert find(file, facts={**FACTS, "driver": "1"}, accept=["driver"]) == TUNED.plan


def test_what_was_asked_for_and_is_none_raises_at_once(tmp_path):
    with pytest.raises(
        PlanError, match="expected auto, default, library, reference, or a plan's file; got 'fast', whi"
    ):
        Planner("fast")
    (tmp_path / "plan.json").write_text("not ours")
    with pytest.raises(PlanError, match=r"plan\.json: expected a plan"):
        Planner(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="accept: expected a plan's file, whose facts may differ; got plan 'auto'"):
        Planner("auto", ["driver"])


# ------------------------------------------------------------------------------------------------------ a pretended GPU


def test_a_gpu_verifies_once_and_says_what_failed(capsys):
    calls = []

    def verify():
        calls.append(1)
        return VERIFIED

    with pytest.warns(UserWarning, match="op cuda: failed its verification on a GPU: wrong in row 3") as told:
        assert find(device=CUDA, verify=verify) == VERIFIED
    assert len(told) == 1
    said = capsys.readouterr().err
    assert said.startswith("1 of our kernels are verified on a GPU; `hqtvae tune CHECKPOINT` would also")
    assert said.count("\n") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find(device=CUDA, verify=verify) == VERIFIED
        assert find("default", device=CUDA, verify=verify) == VERIFIED
    assert capsys.readouterr().err == ""
    assert calls == [1]
    assert PlanFile.read(verified_path(FACTS)).plan == VERIFIED


def test_an_update_verifies_again():
    calls = []

    def verify():
        calls.append(1)
        return Plan("default", verified=frozenset({"op triton"}))

    find(device=CUDA, verify=verify)
    find(device=CUDA, facts={**FACTS, "torch": "2.14.0"}, verify=verify)
    assert calls == [1, 1]


def test_an_outcome_that_was_cut_short_is_completed():
    PlanFile("default", FACTS, verified=frozenset(), unreached=frozenset({"op triton"})).write(verified_path(FACTS))
    with pytest.warns(UserWarning, match="op cuda: failed its verification"):
        assert find(device=CUDA, verify=lambda: VERIFIED) == VERIFIED
    assert PlanFile.read(verified_path(FACTS)).unreached == frozenset()


def test_a_tuned_plan_says_what_it_passes_over_for_lack_of_time(tmp_path):
    cut = PlanFile("tuned", FACTS, verified=frozenset(), unreached=frozenset({"op triton", "op2 triton"}))
    said = (
        r"tuning ended before it had verified op triton, op2 triton: other kernels .* a larger --budget verifies them"
    )
    cut.write(plan_path(FACTS))
    with pytest.warns(UserWarning, match=f"{plan_path(FACTS).name}: {said}"):
        assert find(device=CUDA) == cut.plan
    cut.write(tmp_path / "plan.json")
    with pytest.warns(UserWarning, match=f"plan.json: {said}"):
        assert find(tmp_path / "plan.json", device=CUDA) == cut.plan


def test_a_tuned_plan_needs_no_verification(quiet):
    TUNED.write(plan_path(FACTS))
    assert find(device=CUDA) == TUNED.plan
    assert find("library", device=CUDA) is PLANS["library"]


@pytest.mark.parametrize("error", [RuntimeError("no worker starts"), ImportError("no such module"), OSError("killed")])
def test_a_gpu_that_cannot_verify_computes_by_libraries_and_says_so(error):
    def verify():
        raise error

    said = f"our kernels cannot be verified on a GPU .{type(error).__name__}: {error}.: libraries alone compute"
    with pytest.warns(UserWarning, match=said):
        assert find(device=CUDA, verify=verify) is PLANS["library"]
    assert not verified_path(FACTS).exists()


def test_an_outcome_that_cannot_be_kept_or_read_costs_another_verification(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path / "file"))
    plan = Plan("default", verified=frozenset())
    with pytest.warns(UserWarning, match="kernels will be verified again next time"):
        assert find(device=CUDA, verify=lambda: plan) == plan
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path))
    plans_folder().mkdir()
    verified_path(FACTS).write_text("{")
    with pytest.warns(UserWarning, match=r"verified\.json: expected a plan .*: verifying again"):
        assert find(device=CUDA, verify=lambda: plan) == plan
    assert PlanFile.read(verified_path(FACTS)).plan == plan


# ---------------------------------------------------------------------------------------------------------------- facts


def test_facts_are_of_the_device_the_model_and_what_it_computes_in(monkeypatch):
    config = golden_pipeline("class_parallel").config
    facts = facts_of(config, CPU, Precision(torch.float32), None)
    assert facts == facts_of(config, CPU, Precision(torch.float32), None)
    changed = [
        facts_of(golden_pipeline("class_sequential").config, CPU, Precision(torch.float32), None),
        facts_of(config, CPU, Precision(torch.bfloat16), None),
        facts_of(config, CPU, Precision(torch.float32, tf32=True), None),
        facts_of(config, CPU, Precision(torch.float32), "int8"),
    ]
    assert [{name for name in facts if other[name] != facts[name]} for other in changed] == [
        {"model"},
        {"dtype"},
        {"dtype"},
        {"quantization"},
    ]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 96)
    assert facts_of(config, CPU, Precision(torch.float32), None)["threads"] == 96
    assert facts["multiprocessors"] is None
    PlanFile("tuned", facts).check(facts)


def test_a_gpus_facts(monkeypatch, tmp_path):
    class Properties:
        multi_processor_count, total_memory = 132, 85_000_000_000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n")
    monkeypatch.setattr(planning, "DRIVER", tmp_path / "version")
    facts = facts_of(golden_pipeline("class_parallel").config, CUDA, Precision(torch.bfloat16), None)
    assert facts["device"] == "a GPU"
    assert (facts["multiprocessors"], facts["memory"], facts["driver"]) == (132, 85_000_000_000, "550.54.15")
    assert facts["threads"] is facts["processor"] is None
    monkeypatch.setattr(planning, "DRIVER", tmp_path / "nowhere")
    assert facts_of(golden_pipeline("class_parallel").config, CUDA, Precision(torch.bfloat16), None)["driver"] is None


def test_the_hash_of_sources_follows_them(monkeypatch, tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "csrc").mkdir()
    monkeypatch.setattr(planning, "PACKAGE", tmp_path)
    monkeypatch.setattr(planning, "_csrc", lambda: [tmp_path / "csrc"])

    def hashed():
        sources.cache_clear()
        return sources()

    found = [hashed()]
    for name, text in (("ops/a.py", "1"), ("ops/a.py", "2"), ("ops/b.py", ""), ("csrc/a.cu", "1"), ("csrc/a.cu", "2")):
        (tmp_path / name).write_text(text)
        found.append(hashed())
    assert len(set(found)) == len(found)
    (tmp_path / "ops/notes.pyc").write_text("compiled")
    assert hashed() == found[-1]
    sources.cache_clear()


# ---------------------------------------------------------------------------------------------------------- a pipeline


def opened(**options) -> HQTVAEPipeline:
    return HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32", **options)


HOW = {"class_labels": [1, 2], "seed": 3, "progress": False, "output_type": "codes"}


def test_a_pipelines_outputs_say_by_which_plan(tmp_path):
    pipe = opened()
    assert pipe.plan is PLANS["default"]
    assert pipe(**HOW).plan == pipe.plan.id
    assert [drawn.plan for drawn in pipe.stream(**HOW)] == [pipe.plan.id] * 2
    file = PlanFile("tuned", pipe.plan_facts(), engine={1: Measured("skip_query")})
    file.write(plan_path(pipe.plan_facts()))
    tuned = opened()
    assert tuned.plan == file.plan
    assert tuned(**HOW).plan == file.plan.id != pipe.plan.id
    assert opened(plan="default").plan is PLANS["default"]
    assert opened(plan=plan_path(pipe.plan_facts())).plan == file.plan


def test_determinism_goes_by_the_default_plan_unless_one_was_asked_for():
    facts = opened().plan_facts()
    PlanFile("tuned", facts, engine={1: Measured("captured, skip_query")}).write(plan_path(facts))
    found, asked = opened(), opened(plan=plan_path(facts))
    assert found.plan.kind == "tuned"
    drawn = found(**HOW, deterministic="batch")
    assert drawn.plan == PLANS["default"].id
    assert found(**HOW).plan == found.plan.id
    assert asked(**HOW, deterministic="batch").plan == asked.plan.id
    plain = opened(plan="default")(**HOW, deterministic="batch")
    assert all(torch.equal(a, b) for a, b in zip(drawn.codes, plain.codes, strict=True))


def test_plans_that_name_what_is_gone_say_so_and_draw():
    pipe = opened()
    facts = pipe.plan_facts()
    with recording() as sites:
        pipe(**HOW)
    gone = next(where for where in sites if where.startswith("sample_logits | "))
    PlanFile("tuned", facts, {gone: Measured("triton/gone")}).write(plan_path(facts))
    with pytest.warns(UserWarning, match="expected 'triton/gone', which is unknown; going by the op's order"):
        drawn = opened()(**HOW)
    assert all(torch.equal(a, b) for a, b in zip(drawn.codes, pipe(**HOW).codes, strict=True))


@pytest.mark.parametrize("plan", ["library", "reference"])
def test_other_kinds_draw_too(plan):
    pipe = opened(plan=plan)
    assert pipe.plan.kind == plan
    drawn, wanted = pipe(**HOW), opened()(**HOW)
    assert all(torch.equal(a, b) for a, b in zip(drawn.codes, wanted.codes, strict=True))
    pictures, plain = (each.decode(wanted.codes, "pt") for each in (pipe, opened()))
    torch.testing.assert_close(pictures, plain, rtol=0, atol=1e-4)


def test_what_computes_is_under_the_plan_in_drawing_decoding_and_encoding(monkeypatch):
    pipe, asked = opened(plan="reference"), []
    original = backend._first

    def watched(op, backends, inputs, plan):
        asked.append((op, plan))
        return original(op, backends, inputs, plan)

    monkeypatch.setattr(backend, "_first", watched)
    codes = pipe(**HOW).codes
    images = pipe.decode(codes, "pt")
    pipe.encode(images * 2 - 1)
    assert {"sample_logits", "group_norm_silu"} <= {op for op, _ in asked}
    assert all(plan is pipe.plan for _, plan in asked)


def test_captures_are_a_plans_own():
    pipe, other = opened(plan=Plan().with_engine("captured")), Plan("library").with_engine("captured")
    codes = pipe(**HOW).codes
    for plan in (None, other, None, other):
        pipe._executor.decode(codes, 2, plan=plan)
    reports = {report.key: report.uses for report in pipe._executor.graphs.report() if report.key[0] == "decode"}
    assert [key[-1] for key in reports] == [f"plan {pipe.plan.id}", f"plan {other.id}"]
    assert list(reports.values()) == [2, 2]
