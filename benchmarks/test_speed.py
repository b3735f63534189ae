"""The op specs' small cases and the tiny model under pytest-benchmark: for a quick look at one change.

``pytest benchmarks`` times them (``--benchmark-compare`` against an earlier ``--benchmark-autosave``); with
``--benchmark-disable`` each runs once, and its result is checked. Verdicts on speed are ``hqtvae bench compare``'s.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.entrants.ours import Ours, open_model, same_for_all
from benchmarks.suites.op_timing import SEED, fresh, map_tensors
from hqtvae_fast.ops.spec import all_specs

CPU = torch.device("cpu")
CASES = [(spec, case) for spec in all_specs().values() for case in spec.small]


@pytest.mark.parametrize("spec,case", CASES, ids=[f"{spec.op}: {case.name}" for spec, case in CASES])
def test_op(spec, case, benchmark):
    benchmark.group = f"{spec.op}: {case.name}"
    inputs = spec.make_inputs(case, CPU, SEED)
    wanted = spec.reference(*map_tensors(fresh, inputs))
    # A set of inputs a call: some ops write to theirs.
    got = benchmark.pedantic(spec.run, setup=lambda: (map_tensors(fresh, inputs), {}), rounds=10)
    spec.check(got, wanted, inputs)


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    model = open_model("tiny", None)
    return Ours(model, CPU, "fp32", same_for_all(model.config.vae, 1.0, None, None))


def test_draw(tiny, benchmark):
    codes = benchmark(tiny.draw, 2)
    assert [tuple(level.shape) for level in codes] == [(2, 4, 4), (2, 8, 8)]
    assert all(int(level.min()) >= 0 and int(level.max()) < 64 for level in codes)


def test_decode(tiny, benchmark):
    pixels = benchmark(tiny.decode, tiny.draw(2))
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
