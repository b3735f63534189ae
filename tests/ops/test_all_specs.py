"""What holds of every op that has a spec: a new one is tested here by existing."""

from __future__ import annotations

import pytest
import torch

from hqtvae_fast.backend import choose
from hqtvae_fast.hardware import fp32_products
from hqtvae_fast.ops.spec import all_specs

SPECS = all_specs()
SMALL = [pytest.param(spec, case, id=f"{spec.op}: {case.name}") for spec in SPECS.values() for case in spec.small]
LARGE = [pytest.param(spec, case, id=f"{spec.op}: {case.name}") for spec in SPECS.values() for case in spec.cases]


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.op)
def test_a_spec_is_whole(spec):
    """Names are unique, real cases cost something, and the last backend runs on a CPU."""
    names = [case.name for case in (*spec.cases, *spec.small)]
    assert len(names) == len(set(names))
    assert spec.cases
    assert spec.small
    for case in spec.cases:
        cost = spec.cost(case)
        assert cost.flops > 0
        assert cost.bytes > 0
    inputs = spec.make_inputs(spec.small[0], torch.device("cpu"), 0)
    if spec.backends:
        assert choose(spec.op, spec.backends, *inputs).backend in spec.backends
    variants = [backend.name for backend in spec.backends]
    assert len(variants) == len(set(variants))


@pytest.mark.parametrize("spec,case", SMALL)
def test_on_a_cpu(spec, case):
    """Every backend and variant that can run there."""
    device = torch.device("cpu")
    inputs = spec.make_inputs(case, device, 1)
    wanted = spec.reference(*spec.make_inputs(case, device, 1))
    can_run = [backend.name for backend in spec.backends if backend.why_not(*inputs) is None]
    for name in can_run or [None]:
        spec.check(spec.run(*spec.make_inputs(case, device, 1), backend=name), wanted, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("spec,case", SMALL + LARGE)
def test_on_a_gpu(spec, case):
    """Every backend and variant that can run there. Torch's own convolutions of fp32 would be TF32's, which no
    tolerance is for."""
    device = torch.device("cuda")
    inputs = spec.make_inputs(case, device, 1)
    can_run = [backend.name for backend in spec.backends if backend.why_not(*inputs) is None]
    assert can_run
    wanted = spec.reference(*inputs)
    with fp32_products(device, tf32=False):
        for name in can_run:
            spec.check(spec.run(*spec.make_inputs(case, device, 1), backend=name), wanted, inputs)
