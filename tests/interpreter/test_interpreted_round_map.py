"""The Triton kernel that rounds maps to 8 bits, interpreted on the CPU: the same numbers."""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
import torch

from hqtvae_fast.ops.kernels.round_map import Rounding, round_map
from hqtvae_fast.ops.kernels.round_map.spec import SPEC, make_inputs

torch.set_num_threads(1)
CPU = torch.device("cpu")


def small_cases():
    for case in SPEC.small:
        inputs = make_inputs(case, CPU, 0)
        if inputs[3] != "uint8" and case.dtype is torch.float32:  # of 16 bits the interpreter cuts sums off
            SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)


def every_tie_and_every_bf16():
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).view(1, 256, 16, 16)
    ties = (torch.arange(-300, 300) + 0.5).view(1, 24, 5, 5)
    roundings = ((0.25, 3), (0.1, -128), (2.0**-120, 127), (0.3, 1), (0.3, 16))
    for x in (every, 0.25 * ties, 0.1 * ties):
        x = x.contiguous(memory_format=torch.channels_last)
        for scale, zero in roundings:
            rounding = Rounding("int8", scale, zero)
            one, other = (round_map(x, rounding, backend=backend) for backend in ("triton", "reference"))
            assert torch.equal(one, other), rounding
        for scale in (1.0, 0.01, 2.0**-9, 300.0):
            rounding = Rounding("fp8", scale)
            one, other = (round_map(x, rounding, backend=backend).float() for backend in ("triton", "reference"))
            assert torch.equal(one, other), rounding


def operators():
    x, *rest = make_inputs(SPEC.small[2], CPU, 0)
    torch.library.opcheck(torch.ops.hqtvae_fast.round_map.default, (x.nan_to_num(0.0), *rest, "triton"))
"""

CHECKS = Checks(("small_cases", "every_tie_and_every_bf16"), slow=("operators",))


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
