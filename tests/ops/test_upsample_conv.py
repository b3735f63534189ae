"""Folded upsampling against its definition, phase by phase and unfolded."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import upsample_conv
from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling, triton
from hqtvae_fast.ops.kernels.upsample_conv.spec import SPEC, make_inputs

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_small_cases(case):
    inputs = make_inputs(case, CPU, 0)
    SPEC.check(upsample_conv(*inputs), SPEC.reference(*inputs), inputs)


def test_the_specs_definition_is_doubling_and_convolving():
    x, weight, bias = torch.randn(2, 3, 4, 5).double(), torch.randn(6, 3, 3, 3).double(), torch.randn(6).double()
    wanted = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)
    inputs = (x, fold_upsampling(weight), bias)
    torch.testing.assert_close(SPEC.reference(*inputs), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(upsample_conv(*inputs), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_the_specs_weights_fold_without_rounding(case):
    _, folded, _, weight = make_inputs(case, CPU, 0)
    assert weight.float().std() > 0
    assert torch.equal(fold_upsampling(weight.double()), folded.double())


def test_the_check_sees_swapped_phases():
    x, folded, bias, _ = inputs = make_inputs(SPEC.small[0], CPU, 0)
    swapped = torch.cat([folded.chunk(4)[phase] for phase in (0, 2, 1, 3)])
    with pytest.raises(AssertionError, match="off by"):
        SPEC.check(upsample_conv(x, swapped, bias), SPEC.reference(*inputs), inputs)


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_opcheck(case):
    torch.library.opcheck(torch.ops.hqtvae_fast.upsample_conv.default, (*make_inputs(case, CPU, 0), "reference"))


X, FOLDED, BIAS = torch.zeros(1, 32, 2, 2), torch.zeros(20, 32, 2, 2), torch.zeros(5)


@pytest.mark.parametrize(
    "inputs,message",
    [
        ((X[0], FOLDED, BIAS), r"x: expected \[B, C, H, W\], none of them 0; got \[32, 2, 2\]"),
        ((X, FOLDED, BIAS, FOLDED), r"weight: expected torch.float32 \[5, 32, 3, 3\]; got .*\[20, 32, 2, 2\]"),
        ((X, FOLDED[:16], BIAS), r"folded: expected \[20, 32, 2, 2\] for 5 biases; got \[16, 32, 2, 2\]"),
        ((X, FOLDED.half(), BIAS), "expected one floating dtype; got torch.float32, torch.float16 and torch.float32"),
    ],
)
def test_refusals(inputs, message):
    with pytest.raises(ValueError, match=message):
        upsample_conv(*inputs)


@pytest.mark.parametrize(
    "inputs,reason",
    [
        ((X, FOLDED, BIAS), "expected bf16 or fp16 throughout; got torch.float32"),
        ((X.half()[:, :31], FOLDED.half()[:, :31], BIAS.half()), "expected input channels in multiples of 32; got 31"),
        ((X.half(), FOLDED.half(), BIAS.half()), r"x: expected channels-last memory; got strides \(128, 4, 2, 1\)"),
    ],
)
def test_triton_says_why_not(inputs, reason):
    with pytest.raises(BackendError, match=reason):
        upsample_conv(*inputs, backend="triton")


@pytest.mark.parametrize(
    "pixels,channels,outputs,hopper,tile",
    [
        (256, 512, 512, True, triton.SMALL),  # too few for tiles of 128 pixels
        (8 * 128 * 128, 128, 128, False, triton.LARGE),
        (8 * 128 * 128, 128, 128, True, triton.TALL),
        (8 * 64 * 64, 256, 256, True, triton.WIDE),
        (8 * 64 * 64, 96, 256, True, triton.LARGE),  # no whole steps of 64 channels
        (8 * 64 * 64, 256, 192, True, triton.LARGE),  # half a tile of outputs would be idle
    ],
)
def test_a_tile_is_picked_by_how_many_there_are_and_what_they_read(pixels, channels, outputs, hopper, tile):
    assert triton.pick_tile(pixels, channels, outputs, 132, hopper) is tile


@pytest.mark.gpu
@pytest.mark.parametrize("case", SPEC.cases, ids=lambda case: case.name)
def test_on_a_gpu(case):
    inputs = make_inputs(case, torch.device("cuda"), 0)
    SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)
