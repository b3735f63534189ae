"""Whatever a variant does, its worker's parent names it and goes on; what is sound is never refused."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import planted
import pytest
import torch
from planted import CASES, SOUND, WRONG

from benchmarks.measuring.environment import describe
from benchmarks.measuring.schema import Results, Row, write
from benchmarks.report.status import PROOF
from hqtvae_fast.ops.kernels.local_attention.reference import level_mask
from hqtvae_fast.ops.kernels.local_attention.spec import allowance
from hqtvae_fast.ops.spec import Case, all_specs, check_errors
from hqtvae_fast.tune import parent as parents
from hqtvae_fast.tune import proof
from hqtvae_fast.tune.cases import packed
from hqtvae_fast.tune.parent import Parent, WorkerError
from hqtvae_fast.tune.proof import Trials, prove
from hqtvae_fast.tune.timing import Duel

SECONDS = 10.0  # what a job may take: here they take milliseconds
SPECS = all_specs()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parent():
    with Parent("planted") as made:
        yield made


def job(variant: str, case: Case = CASES[0], **more: object) -> dict[str, object]:
    inputs = packed(planted.make_inputs(case, CPU, 0))
    fixed = {"do": "prove", "op": "planted", "inputs": inputs, "device": "cpu", "threads": 1}
    return {**fixed, "variant": variant, "default": "native", **more}


def outcomes(parent: Parent, seconds: float, **more: object) -> dict[str, str]:
    """The first reason against each variant, over both cases; "" where there is none."""
    found = dict.fromkeys((*SOUND, *WRONG), "")
    for case in CASES:
        for variant in [name for name in found if not found[name]]:
            answer = parent.ask(job(variant, case, **more), 2.0 if variant == "native/hangs" else seconds)
            found[variant] = "" if answer["status"] == "right" else answer["reason"]
    return found


def assert_all_caught(found: dict[str, str]) -> None:
    assert [name for name in SOUND if found[name]] == []
    for name, reason in WRONG.items():
        assert found[name], f"{name} was not caught"
        assert reason in found[name], name


def test_each_planted_fault_is_caught_and_named_and_the_rest_is_done(parent):
    assert_all_caught(outcomes(parent, SECONDS))
    assert parent.started == 1 + 3  # another after each abort, signal and hang


RUNS = 20
FAULTS, REFUSED = "planted faults were missed", "sound variants were refused"


@pytest.fixture(scope="module")
def counted() -> Iterator[dict[str, list[list[int]]]]:
    """Of each of the two tests in many runs: what went wrong, by run, for each thing that was tried. Written to the
    file that HQTVAE_RATES names, if it does, for STATUS."""
    found: dict[str, list[list[int]]] = {FAULTS: [], REFUSED: []}
    yield found
    if (file := os.environ.get("HQTVAE_RATES")) is not None:
        rows = [
            Row(name, "tune", (tuple(map(sum, zip(*wrong, strict=True))),), "count", work={"tried": len(wrong)})
            for name, wrong in found.items()
            if wrong
        ]
        facts = {**describe(CPU), "command": "pytest -m slow tests/tune/test_parent.py -k twenty_runs"}
        write(Results(PROOF, facts, tuple(rows)), Path(file))


def seeds_of(run: int) -> tuple[int, ...]:
    return 3 * run, 3 * run + 1, 3 * run + 2


@pytest.mark.slow
def test_twenty_runs_catch_all(parent, counted):
    found = [outcomes(parent, SECONDS, seeds=list(seeds_of(run))) for run in range(RUNS)]
    counted[FAULTS] += [[int(reason not in one[name]) for one in found] for name, reason in WRONG.items()]
    for one in found:
        assert_all_caught(one)


def test_same_bits_are_those_of_the_default_variant(parent):
    assert parent.ask(job("native/slow"), SECONDS)["same_bits"]
    assert not parent.ask(job("native/another_way"), SECONDS)["same_bits"]
    parent.fresh()  # a new worker computes the default's anew
    assert parent.ask(job("reference"), SECONDS)["same_bits"]


def test_an_unknown_variant_is_no_fault_of_the_worker(parent):
    parent.ask(job("native"), SECONDS)
    before = parent.started
    answer = parent.ask(job("native/none"), SECONDS)
    assert answer["status"] == "cannot"
    assert "native/none" in answer["reason"]
    assert parent.started == before


def test_what_is_proven_is_the_choice_that_was_named(parent):
    site = "planted | f32[64,160] f32[160]"
    assert parent.ask(job("native", site=site), SECONDS)["status"] == "right"
    answer = parent.ask(job("native", site=site.replace("64", "65")), SECONDS)
    assert (answer["status"], site in answer["reason"]) == ("cannot", True)


def test_two_variants_are_timed_in_turns(parent):
    fixed = {"do": "time", "incumbent": "native", "seconds": 2.0}
    answer = parent.ask(job("", **fixed, challenger="native/slow"), SECONDS)
    assert Duel(tuple(answer["incumbent"]), tuple(answer["challenger"])).ratio > 2
    answer = parent.ask(job("", **fixed, challenger="native/other_bits"), SECONDS)
    assert answer["reason"] == "native/other_bits: other bits after it was timed"


def test_a_worker_ends_with_its_parent(parent):
    parent.ask(job("native"), SECONDS)
    process = parent._worker._process
    process.stdin.close()
    assert process.wait(timeout=SECONDS) == 0
    assert parent.ask(job("native"), SECONDS)["status"] == "crashed"
    assert parent.ask(job("native"), SECONDS)["status"] == "right"


@pytest.mark.slow
def test_a_hung_worker_is_killed_at_once(parent):
    parent.ask(job("native"), SECONDS)
    process, start = parent._worker._process, time.monotonic()
    assert parent.ask(job("native/hangs"), 0.5)["status"] == "hung"
    assert process.poll() is not None
    assert time.monotonic() - start < 5


def test_a_worker_that_cannot_start_says_why():
    with Parent("no_such_module") as broken, pytest.raises(WorkerError, match="No module named 'no_such_module'"):
        broken.ask(job("native"), SECONDS)


def test_a_device_in_error_costs_the_job_and_its_worker(monkeypatch):
    class Broken:
        def __init__(self, arguments):
            self.killed = False
            workers.append(self)

        def ask(self, job, seconds):
            return {"status": "right", "broken": "leaves the device in error (an illegal memory access)"}

        def kill(self):
            self.killed = True

    workers = []
    monkeypatch.setattr(parents, "_Worker", Broken)
    made = Parent()
    answer = made.ask(job("native"), SECONDS)
    assert answer == {"status": "crashed", "reason": "leaves the device in error (an illegal memory access)"}
    assert [worker.killed for worker in workers] == [True]


# ------------------------------------------------------------------------------------------------------ sound variants


SOUND_VARIANTS = [
    pytest.param(
        *(spec, case, backend.name),
        id=f"{spec.op}: {case.name}, {backend.name}",
        marks=[pytest.mark.slow] if number > 1 else [],
    )
    for spec in SPECS.values()
    for number, case in enumerate(spec.small)
    for backend in spec.backends
    if backend.why_not(*spec.make_inputs(case, CPU, 0)) is None
]


@pytest.mark.parametrize("spec,case,variant", SOUND_VARIANTS)
def test_no_sound_variant_is_refused(spec, case, variant):
    prove(Trials(spec, case, CPU), variant, None)


def test_scores_so_large_that_their_rounding_shows_are_no_fault():
    """Of these seeds one in ten was refused: rows of ten times the size have scores of some hundreds."""
    spec = SPECS["local_attention"]
    case = next(case for case in spec.small if case.name == "21 positions by level")
    prove(Trials(spec, case, CPU, (6, 16, 19, 35)), "sdpa", None)
    qkv, bias, keys, *_ = inputs = spec.make_inputs(case, CPU, 0)
    assert allowance(qkv, bias, keys) == 1e-6  # of an ordinary size it is what it was
    assert 1e-6 < allowance(10 * qkv, bias, keys) < 1e-4
    (wanted,) = spec.reference(*inputs)
    with pytest.raises(AssertionError, match="off by"):
        spec.check((wanted.float() * (1 + 1e-4),), (wanted,), inputs)


@pytest.mark.parametrize("seed", [35, 192, 308])
def test_attention_that_is_exact_but_for_one_rounding_of_its_scores_is_right(seed):
    """No kernel whose scores are fp32 can do better, and 1e-6 of the largest value was too little for it."""
    spec = SPECS["local_attention"]
    case = next(case for case in spec.small if case.name == "21 positions by level")
    qkv, *others = spec.make_inputs(case, CPU, seed)
    inputs = (10 * qkv, *others)
    q, k, v = inputs[0].double().permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    seen = scores.float().double().masked_fill(~level_mask(0, qkv.shape[1], CPU), float("-inf"))
    best = (seen.softmax(dim=-1) @ v).transpose(1, 2).flatten(2).float()
    (wanted,), (plain,) = spec.reference(*inputs), spec.run(*inputs, backend="reference")
    spec.check((best,), (wanted,), inputs)
    with pytest.raises(AssertionError, match="off by"):
        check_errors("output", best, wanted, plain, absolute=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("spec,case,variant", SOUND_VARIANTS)
def test_no_sound_variant_is_refused_in_twenty_runs(spec, case, variant, counted):
    refused: list[str] = []
    for run in range(RUNS):
        try:
            prove(Trials(spec, case, CPU, seeds_of(run)), variant, None)
            refused.append("")
        except proof.WrongError as error:
            refused.append(str(error))
    counted[REFUSED].append([int(bool(reason)) for reason in refused])
    assert not any(refused), refused


def test_a_large_case_is_proven_from_fewer_inputs(monkeypatch):
    trials = Trials(planted.SPEC, CASES[0], CPU)
    assert [trial.name for trial in trials][:3] == ["seed 0", "seed 1", "seed 2"]
    monkeypatch.setattr(proof, "LARGE", 0.0)
    assert len(list(Trials(planted.SPEC, CASES[0], CPU))) == 2
