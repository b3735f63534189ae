"""8-bit convolutions against float64, their formats, and their refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops.kernels.quantized_conv import quantize, quantize_weights, quantized_conv, triton, zero_offsets
from hqtvae_fast.ops.kernels.quantized_conv.spec import SPEC, make_inputs
from hqtvae_fast.ops.kernels.upsample_conv.spec import exact as upsample_exactly

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn


def test_int8_numbers_are_the_nearest_and_saturate():
    x = torch.tensor([0.0, 0.5, 1.5, -2.4, 126.6, 500.0, -500.0]).view(1, 1, 7, 1)
    assert quantize(x, torch.ones(1), torch.int8).flatten().tolist() == [0, 0, 2, -2, 127, 127, -127]
    assert quantize(x, torch.full((1,), 2.0), torch.int8).flatten().tolist() == [0, 0, 1, -1, 63, 127, -127]


def test_fp8_numbers_are_the_nearest_and_saturate():
    x = torch.tensor([0.0, 1.0625, 17.0, 19.0, 1000.0, -1e9]).view(1, 1, 6, 1)
    assert quantize(x, torch.ones(1), FP8).float().flatten().tolist() == [0, 1, 16, 20, 448, -448]


@pytest.mark.parametrize("form", [torch.int8, FP8])
def test_each_block_of_channels_has_its_scale(form):
    x = torch.stack([torch.full((4, 4), value) for value in (1.0, 2.0, 300.0, 100.0)])[None]
    numbers = quantize(x, torch.tensor([0.5, 100.0]), form).float()
    assert numbers[0, :, 0, 0].tolist() == [2, 4, 3, 1]


@pytest.mark.parametrize("form,largest", [(torch.int8, 127), (FP8, 448)])
def test_weights_use_the_whole_range_of_each_output(form, largest):
    weight = torch.randn(5, 3, 3, 3) * torch.tensor([1e-3, 1.0, 50.0, 1.0, 0.0])[:, None, None, None]
    numbers, scales = quantize_weights(weight, form)
    assert numbers.float().abs().amax(dim=(1, 2, 3)).tolist() == [largest] * 4 + [0]
    steps = scales if form is torch.int8 else weight.abs().amax(dim=(1, 2, 3)) / 8
    off = (numbers.float() * scales[:, None, None, None] - weight).abs().amax(dim=(1, 2, 3))
    assert bool((off <= 0.51 * steps).all())


def test_sums_of_int8_are_exact_where_fp32_is_not():
    """All sums are 16,129 x 9 x 512 + 1, beyond 2^24 and odd."""
    x = torch.full((1, 512, 3, 3), 127, dtype=torch.int8).contiguous(memory_format=torch.channels_last)
    weight = torch.full((32, 512, 3, 3), 127, dtype=torch.int8)
    weight[:, 0, 1, 1] = 1
    got = quantized_conv(x, weight, torch.ones(1), torch.ones(32), torch.zeros(32), dtype=torch.float32)
    whole = 127 * 127 * (9 * 512 - 1) + 127
    assert float(got[0, 0, 1, 1]) == float(torch.tensor(whole, dtype=torch.int64).float())
    plain = F.conv2d(x.float(), weight.float(), padding=1)
    assert bool((got[..., 1, 1] - plain[..., 1, 1]).abs().max() < 2**-20 * whole)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 5),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    outputs=st.integers(1, 4),
    folded=st.booleans(),
    zero=st.integers(-128, 127),
)
def test_a_number_that_stands_for_0_is_taken_off_exactly(batch, channels, height, width, outputs, folded, zero):
    """As if each number had been less by it, and 0 lay beyond the map; at every border."""
    generator = torch.Generator().manual_seed(zero + 128)
    x = torch.randint(-128, 128, (batch, channels, height, width), generator=generator, dtype=torch.int8)
    shape = (4 * outputs, channels, 2, 2) if folded else (outputs, channels, 3, 3)
    weight = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    ones, bias = (torch.ones(1), torch.ones(len(weight))), torch.zeros(outputs)
    got = quantized_conv(x, weight, *ones, bias, offsets=zero_offsets(weight, zero), dtype=torch.float32)
    moved, wide = x.double() - zero, weight.double()
    if folded:
        wanted = upsample_exactly(moved, wide, bias.double())
    else:
        wanted = F.conv2d(moved, wide, padding=1)
    assert torch.equal(got.double(), wanted)


def test_the_check_sees_a_zero_that_is_forgotten_or_one_too_many():
    case = next(case for case in SPEC.small if case["zero"])
    *most, offsets, dtype = inputs = make_inputs(case, CPU, 0)
    for wrong in (None, offsets + 1):
        with pytest.raises(AssertionError, match="off by"):
            SPEC.check(SPEC.run(*most, wrong, dtype), SPEC.reference(*inputs), inputs)


def test_the_check_sees_a_forgotten_scale():
    x, weight, x_scales, *rest = inputs = make_inputs(SPEC.small[0], CPU, 0)
    with pytest.raises(AssertionError, match="off by"):
        SPEC.check(SPEC.run(x, weight, x_scales.flip(0), *rest), SPEC.reference(*inputs), inputs)


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_the_baseline_has_the_same_shape(case):
    inputs = make_inputs(case, CPU, 0)
    (baseline,) = SPEC.baselines.values()
    assert baseline(*inputs).shape == SPEC.run(*inputs).shape


@pytest.mark.parametrize("case", [SPEC.small[0], SPEC.small[3], SPEC.small[5]], ids=lambda case: case.name)
def test_opcheck(case):
    """Of int8 alone: opcheck multiplies its inputs, and torch has no product of fp8 numbers."""
    inputs = (*make_inputs(case, CPU, 0), "reference")
    torch.library.opcheck(torch.ops.hqtvae_fast.quantized_conv.default, inputs)


X, WEIGHT, SCALES = (
    torch.zeros(1, 64, 2, 2, dtype=torch.int8),
    torch.zeros(20, 64, 3, 3, dtype=torch.int8),
    torch.ones(20),
)


@pytest.mark.parametrize(
    "inputs,message",
    [
        ((X[0], WEIGHT, SCALES[:1], SCALES, SCALES), r"x: expected \[B, C, H, W\], none of them 0; got \[64, 2, 2\]"),
        ((X.float(), WEIGHT, SCALES[:1], SCALES, SCALES), "expected int8 or float8_e4m3fn for both; got torch.float32"),
        ((X, WEIGHT[:, :1], SCALES[:1], SCALES, SCALES), r"weight: expected \[20, 64, 3, 3\] or \[80, 64, 2, 2\]"),
        (
            (X, WEIGHT, SCALES[:3], SCALES, SCALES),
            r"scales: expected a divisor of 64 and 20 of them; got \[3\], \[20\]",
        ),
        (
            (X, WEIGHT, SCALES[:1], SCALES.half(), SCALES),
            "expected fp32 scales and bias; got torch.float32, torch.float16",
        ),
    ],
)
def test_refusals(inputs, message):
    with pytest.raises(ValueError, match=message):
        quantized_conv(*inputs)


@pytest.mark.parametrize(
    "x, scales, offsets, message",
    [
        (X, 1, torch.zeros(16, 20), r"offsets: expected int32 \[16, 20\]; got torch.float32 \[16, 20\]"),
        (X, 1, torch.zeros(20, dtype=torch.int32), r"offsets: expected int32 \[16, 20\]; got torch.int32 \[20\]"),
        (X, 2, torch.zeros(16, 20, dtype=torch.int32), "offsets: expected int8 with one scale; got torch.int8 with 2"),
    ],
)
def test_refusals_of_offsets(x, scales, offsets, message):
    with pytest.raises(ValueError, match=message):
        quantized_conv(x, WEIGHT, SCALES[:scales], SCALES, SCALES, offsets=offsets)


def test_few_pixels_are_cut_into_small_tiles():
    x, weight = (torch.zeros(1, 512, 16, 16), torch.zeros(512, 512, 3, 3))
    assert triton.pick_tile(x, weight, 1) == triton.FEW
    assert triton.pick_tile(torch.zeros(50, 1, 32, 32), weight, 1) == triton.LARGE


@pytest.mark.parametrize(
    "x,scales,reason",
    [
        (X, 4, "expected scales of multiples of 32 channels; got 64 in 4"),
        (X, 1, r"x: expected channels-last memory; got strides \(256, 4, 2, 1\)"),
    ],
)
def test_triton_says_why_not(x, scales, reason):
    with pytest.raises(BackendError, match=reason):
        quantized_conv(x, WEIGHT, SCALES[:scales], SCALES, SCALES, backend="triton")
