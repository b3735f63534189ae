"""The Triton kernel of 8-bit convolutions, interpreted on the CPU, against float64."""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
import torch

from hqtvae_fast.ops.kernels.quantized_conv import triton
from hqtvae_fast.ops.kernels.quantized_conv.spec import SPEC, make_inputs
from hqtvae_fast.ops.kernels.upsample_conv.triton import Tile

torch.set_num_threads(1)
CPU = torch.device("cpu")
# NumPy multiplies integers without a library.
triton.LARGE = triton.SMALL = triton.FEW = Tile(32, 64, 64, warps=4, stages=2)


def small_cases():
    for case in SPEC.small:
        inputs = make_inputs(case, CPU, 0)
        got = SPEC.run(*inputs, backend="triton")
        SPEC.check(got, SPEC.reference(*inputs), inputs)
        if case.dtype is torch.float32 and not case["fp8"]:  # sums are exact, and what follows in one order
            assert torch.equal(got, SPEC.run(*inputs, backend="reference")), case.name


def operators():
    inputs = (*make_inputs(SPEC.small[3], CPU, 0), "triton")
    torch.library.opcheck(torch.ops.hqtvae_fast.quantized_conv.default, inputs)
"""

CHECKS = Checks(("small_cases",), slow=("operators",))


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
