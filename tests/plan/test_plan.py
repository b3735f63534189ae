"""What a plan says of a call, and where choose() asks it."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch

from hqtvae_fast.backend import VARIABLE, Backend, BackendError, choose
from hqtvae_fast.plan import NOT_VERIFIED, Plan, current, recording, site, using

OURS = Backend("triton", lambda x: x, lambda x: None if x > 0 else f"needs a positive number; got {x}")
WIDE = Backend("triton/128", lambda x: x, OURS.why_not, only_by_name=True)
LIBRARY = Backend("torch", lambda x: x)
REFERENCE = Backend("reference", lambda x: x)
BACKENDS = (OURS, WIDE, REFERENCE, LIBRARY)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def of(**choices: str) -> Plan:
    return Plan("tuned", {text.replace("_", " | "): name for text, name in choices.items()})


def test_a_site_tells_shapes_dtypes_layouts_and_options():
    x = torch.zeros(1, 1, 6, dtype=torch.bfloat16, device="cpu")
    weight = torch.zeros(4, 6, dtype=torch.float32, device="cpu")
    assert site("op", (x, weight, None, "exact", False)) == "op | bf16[1,1,6] f32[4,6] - exact False"
    maps = torch.zeros(2, 3, 4, 4, dtype=torch.float32, device="cpu").to(memory_format=torch.channels_last)
    assert site("op", (maps, [weight, weight.t()])) == "op | f32[2,3,4,4]nhwc (f32[4,6] f32[6,4]strided)"
    assert site("op", (1e-6, 32, object())) == "op | 1e-06 32 object"


def test_sources_are_by_the_part_before_the_slash():
    names = ("triton/128x64", "cuda", "native", "cpu", "torch/folded", "onednn", "reference")
    sources = [Backend(name, lambda x: x).source for name in names]
    assert sources == ["ours"] * 4 + ["library"] * 2 + ["reference"]


def test_without_a_plan_the_op_goes_by_its_order():
    assert current() is None
    assert choose("double", BACKENDS, 1).backend is OURS


def test_the_caller_comes_before_the_environment_before_the_plan_before_the_order(monkeypatch):
    with using(of(double_1="triton/128")):
        choice = choose("double", BACKENDS, 1)
        assert choice.backend is WIDE
        assert choice.asked_by.startswith("the plan (tuned ")
        assert choose("double", BACKENDS, 2).backend is OURS
        assert choose("halve", BACKENDS, 1).backend is OURS
        monkeypatch.setenv(VARIABLE, "double=torch")
        assert choose("double", BACKENDS, 1).backend is LIBRARY
        assert choose("double", BACKENDS, 1, backend="reference").backend is REFERENCE
    assert choose("double", BACKENDS, 1).backend is LIBRARY


def test_the_same_call_in_another_layout_is_another_site():
    anything = (Backend("triton", lambda x: x), Backend("torch", lambda x: x))
    x = torch.zeros(2, 3, dtype=torch.float32, device="cpu")
    with using(Plan("tuned", {"double | f32[3,2]strided": "torch"})):
        assert choose("double", anything, x.t()).backend.name == "torch"
        assert choose("double", anything, x.t().contiguous()).backend.name == "triton"


@pytest.mark.parametrize(
    "plan, said",
    [
        ({"double_1": "triton/256"}, r"double \| 1: expected 'triton/256', which is unknown"),
        ({"double_-1": "triton/128"}, r"double \| -1: expected 'triton/128', which cannot run: needs a positive"),
    ],
)
def test_a_stale_choice_is_said_once_and_the_order_goes_on(plan, said):
    number = -1 if "-" in next(iter(plan)) else 1
    with using(of(**plan)):
        with pytest.warns(UserWarning, match=said):
            assert choose("double", BACKENDS, number).asked_by == "the op's order"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert choose("double", BACKENDS, number).asked_by == "the op's order"


def test_what_was_refused_or_not_verified_is_passed_over_with_the_reason():
    with using(Plan("default", refused={"double triton": "wrong in row 3"})):
        choice = choose("double", BACKENDS, 1)
        assert choice.backend is REFERENCE
        assert choice.passed_over[0] == ("triton", "refused by the plan: wrong in row 3")
        assert choose("halve", BACKENDS, 1).backend is OURS
    with using(Plan("default", verified=frozenset({"double triton"}))):
        assert choose("double", BACKENDS, 1).backend is OURS
        choice = choose("halve", BACKENDS, 1)
        assert choice.backend is REFERENCE
        assert choice.passed_over[0] == ("triton", NOT_VERIFIED)


def test_library_and_reference_plans_take_their_own():
    with using(Plan("library")):
        assert choose("double", BACKENDS, 1).backend is LIBRARY
        assert choose("double", (OURS, REFERENCE), 1).backend is REFERENCE
    with using(Plan("reference")):
        assert choose("double", (OURS, LIBRARY, REFERENCE), 1).backend is REFERENCE
        with pytest.raises(BackendError, match="by references alone"):
            choose("double", (OURS, LIBRARY), 1)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected one of reference, library, default, tuned; got 'fast'"):
        Plan("fast")


def test_the_id_tells_plans_apart_and_nothing_else():
    plan = Plan("tuned", {"a | 1": "x", "b | 1": "y"}, {8: "tables"})
    assert plan.id == Plan("tuned", {"b | 1": "y", "a | 1": "x"}, {8: "tables"}).id
    others = [
        Plan("default", plan.choices, plan.engine),
        Plan("tuned", {"a | 1": "x"}, plan.engine),
        Plan("tuned", plan.choices, {9: "tables"}),
        Plan("tuned", plan.choices, plan.engine, {"a x": "wrong"}),
        Plan("tuned", plan.choices, plan.engine, {}, frozenset()),
    ]
    assert len({plan.id, *(other.id for other in others)}) == 6


def test_the_engine_of_a_batch_is_that_of_the_smallest_bucket_that_holds_it():
    plan = Plan("tuned", engine={64: "large", 1: "one", 8: "small"})
    assert [plan.engine_for(batch) for batch in (1, 2, 8, 9, 64, 65)] == ["one", *["small"] * 2, *["large"] * 3]
    assert Plan().engine_for(8) == ""


def test_a_thread_has_a_plan_of_its_own():
    seen = []
    with using(Plan("library")):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
        assert current() is not None
    assert seen == [None]
    assert current() is None


def test_recording_keeps_the_first_inputs_of_each_site():
    first, second = (torch.zeros(2, 3, dtype=torch.float32, device="cpu") for _ in range(2))
    anything = (Backend("reference", lambda x: x),)
    with recording() as found:
        for x in (first, second, first.t()):
            choose("double", anything, x)
    assert list(found) == ["double | f32[2,3]", "double | f32[3,2]strided"]
    assert found["double | f32[2,3]"][0] == "double"
    assert found["double | f32[2,3]"][1][0] is first
    choose("double", anything, torch.zeros(9, dtype=torch.float32, device="cpu"))
    assert len(found) == 2
