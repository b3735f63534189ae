"""Who is asked for an op's backend, in which order, and what is said where the answer cannot be had."""

from __future__ import annotations

import pytest

from hqtvae_fast.backend import NOT_MEASURED, VARIABLE, Backend, BackendError, choose, with_tiles

FAST = Backend("fast", lambda x: x, lambda x: None if x > 0 else f"needs a positive number; got {x}")
PICKY = Backend("picky", lambda x: x, lambda x: "needs a device that nobody has")
PLAIN = Backend("plain", lambda x: x)
BACKENDS = (PICKY, FAST, PLAIN)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def test_the_order_passes_over_those_that_cannot_run_and_keeps_their_reasons():
    choice = choose("double", BACKENDS, 1)
    assert (choice.backend, choice.asked_by) == (FAST, "the op's order")
    assert choice.passed_over == (("picky", "needs a device that nobody has"),)
    choice = choose("double", BACKENDS, -1)
    assert choice.backend is PLAIN
    assert choice.passed_over[1] == ("fast", "needs a positive number; got -1")


def test_what_nobody_has_measured_runs_only_by_name():
    untried = Backend("untried", lambda x: x, only_by_name=True)
    choice = choose("double", (untried, *BACKENDS), 1)
    assert choice.backend is FAST
    assert choice.passed_over[0] == ("untried", NOT_MEASURED)
    assert choose("double", (untried, *BACKENDS), 1, backend="untried").backend is untried


def test_the_variable_comes_before_the_order(monkeypatch):
    monkeypatch.setenv(VARIABLE, "plain")
    choice = choose("double", BACKENDS, 1)
    assert (choice.backend, choice.asked_by, choice.passed_over) == (PLAIN, VARIABLE, ())


def test_the_argument_comes_before_the_variable(monkeypatch):
    monkeypatch.setenv(VARIABLE, "double=plain")
    choice = choose("double", BACKENDS, 1, backend="fast")
    assert (choice.backend, choice.asked_by) == (FAST, "the caller")


@pytest.mark.parametrize("value", ["plain,double=fast", "double=fast,plain", " double=fast , plain ,"])
def test_a_single_ops_setting_beats_the_one_for_all(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    assert choose("double", BACKENDS, 1).backend is FAST
    assert choose("halve", BACKENDS, 1).backend is PLAIN


@pytest.mark.parametrize("value", ["", " ", "halve=plain"])
def test_a_variable_that_does_not_name_the_op_leaves_the_order(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    assert choose("double", BACKENDS, 1).asked_by == "the op's order"


def test_an_unknown_backend_names_op_who_asked_and_the_known_ones(monkeypatch):
    with pytest.raises(BackendError, match=r"double: the caller asked .*'quick'; expected one of picky, fast, plain"):
        choose("double", BACKENDS, 1, backend="quick")
    monkeypatch.setenv(VARIABLE, "double=quick")
    with pytest.raises(BackendError, match=rf"double: {VARIABLE} asked .*'quick'; expected one of picky, fast, plain"):
        choose("double", BACKENDS, 1)


def test_one_that_was_asked_for_and_cannot_run_is_an_error_with_the_reason(monkeypatch):
    with pytest.raises(BackendError, match=r"double: the caller asked .*'fast'.*positive number; got -1"):
        choose("double", BACKENDS, -1, backend="fast")
    monkeypatch.setenv(VARIABLE, "picky")
    with pytest.raises(BackendError, match=rf"double: {VARIABLE} asked .*'picky'.*device that nobody has"):
        choose("double", BACKENDS, 1)


def test_an_empty_name_is_not_taken_for_none():
    with pytest.raises(BackendError, match=r"asked for backend ''"):
        choose("double", BACKENDS, 1, backend="")


def test_nothing_can_run():
    with pytest.raises(BackendError, match=r"double: no backend can run: picky: .*; fast: .*got -1"):
        choose("double", (PICKY, FAST), -1)


def test_tiles_are_variants_that_run_only_by_name():
    def run(x, tile=1):
        return x * tile

    def why_not(x, tile=1):
        return None if x % tile == 0 else f"expected a multiple of {tile}; got {x}"

    variants = with_tiles("fast", run, why_not, {"two": 2, "three": 3})
    assert [(variant.name, variant.only_by_name) for variant in variants] == [
        ("fast", False),
        ("fast/two", True),
        ("fast/three", True),
    ]
    backends = (*variants, PLAIN)
    assert choose("double", backends, 6).backend is variants[0]
    assert choose("double", backends, 6, backend="fast/three").backend.run(6) == 18
    with pytest.raises(BackendError, match="'fast/three', which cannot run: expected a multiple of 3; got 4"):
        choose("double", backends, 4, backend="fast/three")
    with pytest.raises(BackendError, match="'fast/four'; expected one of fast, fast/two, fast/three, plain"):
        choose("double", backends, 4, backend="fast/four")


SOURCES = {
    "ours": ("triton", "triton/128x256x64", "cuda/persistent", "native", "cpu"),
    "library": ("torch", "torch/folded", "sdpa", "onednn/int8", "flash_attn"),
    "reference": ("reference",),
}


@pytest.mark.parametrize("source,name", [(source, name) for source, names in SOURCES.items() for name in names])
def test_a_name_tells_whose_kernels_run(source, name):
    assert Backend(name, abs).source == source
