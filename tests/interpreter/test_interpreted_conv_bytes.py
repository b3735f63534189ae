"""The Triton kernel of the last convolution, interpreted on the CPU, against float64."""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
import torch

from hqtvae_fast.ops.kernels.conv_bytes import conv_bytes
from hqtvae_fast.ops.kernels.conv_bytes.spec import SPEC, make_inputs
from hqtvae_fast.ops.kernels.conv_bytes.triton import GATHERED

torch.set_num_threads(1)
CPU = torch.device("cpu")


def small_cases():
    for case in SPEC.small:
        inputs = make_inputs(case, CPU, 0)
        SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)


def clamped_and_ties_to_even():
    x = torch.zeros(1, 32, 1, 4).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(3, 32, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)
    for values, levels in (((-3.0, 3.0, 0.0), [0, 255, 128]), ((-1.0, 1.0, 0.5), [0, 255, 191])):
        for name in ("triton", "triton/128x16x32"):
            got = conv_bytes(x, weight, torch.tensor(values).bfloat16(), backend=name)
            assert got[0, 0, 0].tolist() == levels, got[0, 0, 0]  # 127.5 -> 128, 191.25 -> 191


def each_tap_where_it_belongs():
    # Numbers that are exact in whatever order, in pictures of several tiles that are no squares: bit for bit.
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (2, 32, 17, 35), generator=generator).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    for N in (1, 3):
        weight = torch.randint(-2, 3, (N, 32, 3, 3), generator=generator).bfloat16() / 256
        weight, bias = weight.contiguous(memory_format=torch.channels_last), torch.zeros(N).bfloat16()
        wanted = conv_bytes(x.double(), weight.double(), bias.double(), backend="reference")
        assert wanted.float().std() > 8
        for tile in (tile for tile in GATHERED if tile.depth == 32):
            assert torch.equal(conv_bytes(x, weight, bias, backend=f"triton/{tile.name}"), wanted), tile


def operators():
    inputs = (*make_inputs(SPEC.small[0], CPU, 0), "triton")
    torch.library.opcheck(torch.ops.hqtvae_fast.conv_bytes.default, inputs)
"""

CHECKS = Checks(("small_cases", "clamped_and_ties_to_even", "each_tap_where_it_belongs"), slow=("operators",))


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
