"""The Triton kernels of 8-bit products, interpreted on the CPU: the reference's numbers, scales, sums and outputs."""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
import torch

from hqtvae_fast.ops.kernels.quantized_linear import reference, triton
from hqtvae_fast.ops.kernels.quantized_linear.spec import SPEC, make_inputs
from hqtvae_fast.ops.kernels.quantized_linear.triton import Tile
from hqtvae_fast.ops.spec import Case

torch.set_num_threads(1)
CPU = torch.device("cpu")
# NumPy multiplies integers without a library.
triton.LARGE = triton.SMALL = Tile(32, 32, 64, warps=4, stages=2)


def rows(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 130, generator=generator)
    x *= torch.randn(12, 1, generator=generator).mul(8).exp()
    for row, value in enumerate((float("inf"), float("-inf"), float("nan"))):
        x[row, 7 * row] = value
    x[3], x[4], x[5] = 0.0, 1e-42, 3e38
    x[6] = torch.arange(130) - 64.5  # ties
    x[6, 0] = 127.0
    return x.to(dtype)


def rounding():
    for dtype in reference.INPUTS:
        for form in reference.LARGEST:
            got, wanted = (round(rows(dtype), form) for round in (triton.round_rows, reference.round_rows))
            assert got[0].dtype is form
            assert torch.equal(*(pair[0].view(torch.int8) for pair in (got, wanted))), f"{dtype} {form}: numbers"
            assert torch.equal(*(pair[1].view(torch.int32) for pair in (got, wanted))), f"{dtype} {form}: scales"


def strided_rows():
    x = rows(torch.float32).view(3, 4, 130)[:, 1:3]
    for got, wanted in zip(triton.round_rows(x, torch.int8), reference.round_rows(x.reshape(6, 130), torch.int8)):
        assert torch.equal(got, wanted) or bool(wanted.isnan().any())


def small_cases():
    for case in SPEC.small:
        inputs = make_inputs(case, CPU, 0)
        got, again = (SPEC.run(*inputs, backend="triton") for _ in range(2))
        assert torch.equal(got, again), case.name
        SPEC.check(got, SPEC.reference(*inputs), inputs)


def parts():
    # Of nine steps, the last of which is cut short, and of three whole ones; parts without any step among them.
    whole = Case("whole steps", {**SPEC.small[6].sizes, "K": 192}, torch.float32)
    for case in (SPEC.small[4], SPEC.small[6], whole):
        inputs = make_inputs(case, CPU, 1)
        wanted = SPEC.reference(*inputs)
        for count in (2, 4, 7):
            tile = Tile(32, 32, 64, warps=4, stages=2, parts=count)
            SPEC.check(triton.quantized_linear(*inputs, tile=tile), wanted, inputs)


def largest_sums():
    # Beyond 2^24 and odd, of whole steps and of a part of one.
    for K in (2048, 2080):
        x, weight = torch.full((3, K), 127.0), torch.full((5, K), 127, dtype=torch.int8)
        weight[:, 0] = 1
        got = SPEC.run(x, weight, torch.ones(5), None, None, "none", backend="triton")
        assert torch.equal(got, torch.full((3, 5), float(127 * 127 * (K - 1) + 127)))


def operators():
    inputs = (*make_inputs(SPEC.small[2], CPU, 0), "triton")
    torch.library.opcheck(torch.ops.hqtvae_fast.quantized_linear.default, inputs)
"""

CHECKS = Checks(("rounding", "strided_rows", "small_cases", "parts", "largest_sums"), slow=("operators",))


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
