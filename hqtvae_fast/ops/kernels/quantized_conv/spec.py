"""Real cases, inputs, cost, tolerance and compilations of 8-bit convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.quantized_conv import (
    BACKENDS,
    LARGEST,
    quantize,
    quantize_weights,
    quantized_conv,
    zero_offsets,
)
from hqtvae_fast.ops.kernels.quantized_conv.reference import less
from hqtvae_fast.ops.kernels.quantized_conv.triton import LARGE, SMALL, TILES, constants, describe
from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling, upsample_conv
from hqtvae_fast.ops.kernels.upsample_conv.reference import interleave
from hqtvae_fast.ops.kernels.upsample_conv.triton import Tile
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

FORMATS = {0: torch.int8, 1: torch.float8_e4m3fn}


def _sizes(B: int, C: int, H: int, N: int, *, folded: int = 0, fp8: int = 0, zero: int = 0) -> dict[str, int]:
    return {"B": B, "C": C, "H": H, "N": N, "k": C, "folded": folded, "fp8": fp8, "zero": zero}


CASES = (  # the decoder's, and a finer scale; "k": channels of a scale; "zero": the number that stands for 0
    Case("256x256x128, int8", _sizes(8, 128, 256, 128), torch.bfloat16),
    Case("256x256x128, fp8", _sizes(8, 128, 256, 128, fp8=1), torch.bfloat16),
    Case("128x128x128, int8, zero", _sizes(8, 128, 128, 128, zero=-90), torch.bfloat16),
    Case("64x64x256, int8, zero", _sizes(8, 256, 64, 256, zero=-90), torch.bfloat16),
    Case("32x32x512, int8, zero", _sizes(8, 512, 32, 512, zero=-90), torch.bfloat16),
    Case("16x16x512, int8, zero", _sizes(8, 512, 16, 512, zero=-90), torch.bfloat16),
    Case("16x16x512, int8, zero, 1 image", _sizes(1, 512, 16, 512, zero=-90), torch.bfloat16),
    Case("64x64x256, int8, 32s", {**_sizes(8, 256, 64, 256), "k": 32}, torch.bfloat16),
    Case("64x64x256 doubled, int8", _sizes(8, 256, 64, 256, folded=1), torch.bfloat16),
    Case("128x128x128 doubled, int8, zero", _sizes(8, 128, 128, 128, folded=1, zero=-3), torch.bfloat16),
    Case("32x32x512 doubled, fp8", _sizes(8, 512, 32, 512, folded=1, fp8=1), torch.bfloat16),
)
SMALL_CASES = (
    Case("int8, two scales", {**_sizes(2, 64, 5, 40), "k": 32}, torch.bfloat16),
    Case("int8, one scale", _sizes(1, 64, 12, 130), torch.float32),
    Case("fp8", {**_sizes(1, 64, 6, 32, fp8=1), "k": 32}, torch.float32),
    Case("int8, doubled", _sizes(2, 32, 3, 24, folded=1), torch.float32),
    Case("fp8, doubled", _sizes(1, 32, 4, 32, folded=1, fp8=1), torch.bfloat16),
    Case("int8, zero", _sizes(2, 64, 5, 40, zero=-117), torch.float32),
    Case("int8, zero, doubled", _sizes(2, 32, 3, 24, folded=1, zero=19), torch.float32),
    Case("int8, zero, one pixel", _sizes(3, 32, 1, 8, zero=-128), torch.float32),
)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, "Tensor | None", torch.dtype]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """A map as after an activation, of which a few numbers are beyond the scales, and weights that keep it as large.
    Where a number stands for 0, all others lie on one side of it, as a SiLU's nearly do."""
    B, C, H, N = (case[letter] for letter in "BCHN")
    generator, form = torch.Generator().manual_seed(seed), FORMATS[case["fp8"]]
    x = F.silu(torch.randn(B, C, H, H, generator=generator, dtype=torch.float32)).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randn(N, C, 3, 3, generator=generator, dtype=torch.float32) * (9 * C) ** -0.5
    numbers, weight_scales = quantize_weights(fold_upsampling(weight) if case["folded"] else weight, form)
    x_scales = 0.9 * x.abs().amax(dim=(0, 2, 3)).view(-1, case["k"]).amax(dim=1) / LARGEST[form]
    bias, zero, offsets = torch.randn(N, generator=generator, dtype=torch.float32), case["zero"], None
    x = quantize(x, x_scales, form)
    if zero:
        x, offsets = (x.float() + zero).clamp_(-128, 127).to(form), zero_offsets(numbers, zero).to(device)
    tensors = (each.to(device) for each in (x, numbers, x_scales, weight_scales, bias))
    x, numbers, x_scales, weight_scales, bias = tensors
    return x, numbers, x_scales, weight_scales, bias, offsets, case.dtype


def run(*inputs: Any, backend: str | None = None) -> Tensor:
    *tensors, offsets, dtype = inputs
    return quantized_conv(*tensors, offsets=offsets, dtype=dtype, backend=backend)


def exact(
    x: Tensor,
    weight: Tensor,
    x_scales: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    offsets: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """In fp64, of the numbers times their scales."""
    numbers = (tensor.cpu().float() for tensor in (x, weight, x_scales, weight_scales, bias))
    x, weight, x_scales, weight_scales, bias = (tensor.double() for tensor in numbers)
    wide = x * x_scales.repeat_interleave(x.shape[1] // len(x_scales))[:, None, None]
    y = F.conv2d(wide, weight * weight_scales[:, None, None, None], bias.repeat(len(weight) // len(bias)), padding=1)
    if offsets is not None:
        y = less(y, offsets.cpu() * (x_scales * weight_scales), x)
    if len(weight) == len(bias):
        return y
    return interleave(y, y.new_empty(len(x), len(bias), 2 * x.shape[2], 2 * x.shape[3]))


def cost(case: Case) -> Cost:
    """Nine taps an output, four if folded; maps and weights read once in 8 bits, the output written once."""
    B, C, H, N = (case[letter] for letter in "BCHN")
    outputs, taps = B * H * H * N * (4 if case["folded"] else 1), 4 if case["folded"] else 9
    weights = N * C * (16 if case["folded"] else 9)
    return Cost(2.0 * outputs * taps * C, B * C * H * H + weights + outputs * case.dtype.itemsize)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """One unit in the last place of the output's dtype, and for sums and scales 2^-20 of the largest output; for fp8 on
    a GPU, whose tensor cores are reported to keep about 14 bits of a sum, 2^-10 of it."""
    assert got.dtype == inputs[-1], f"expected {inputs[-1]}; got {got.dtype}"
    assert got.is_contiguous(memory_format=torch.channels_last), f"expected channels-last; got {got.stride()}"
    assert got.shape == wanted.shape, f"expected {list(wanted.shape)}; got {list(got.shape)}"
    share = 2**-10 if inputs[0].dtype is torch.float8_e4m3fn and got.is_cuda else 2**-20
    limit = torch.finfo(got.dtype).eps * wanted.abs() + share * wanted.abs().max()
    over = (got.cpu().double() - wanted).abs() - limit
    assert bool((over <= 0).all()), f"off by {float(over.max()):.2e} more than the limit"


def in_bf16(x: Tensor, weight: Tensor, x_scales: Tensor, weight_scales: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    """What 8 bits have to beat: bf16 convolutions of the same shapes; what the numbers are is of no matter for time."""
    wide, weights = (torch.empty_like(numbers, dtype=torch.bfloat16) for numbers in (x, weight))
    if len(weight) == len(bias):
        return F.conv2d(wide, weights, bias.bfloat16(), padding=1)
    return upsample_conv(wide, weights, bias.bfloat16())


BLOCKS = ((3, 128, True), (2, 128, True), (3, 32, False), (3, 128, False), (2, 128, False))
"""Taps, channels of a scale, and whether it is the only one."""


def variants(arch: int) -> list[Variant]:
    """One scale and several, in steps of both widths, both kinds of weights, and all tiles; int8 with an offset too;
    fp8 where there is such an instruction."""
    made = []
    for form in (torch.int8, torch.float8_e4m3fn) if arch >= 90 else (torch.int8,):
        for taps, block, one in BLOCKS:
            made.append(_variant(form, taps, block, LARGE if one or arch >= 90 else SMALL, one=one))
        others = {key: tile for key, tile in TILES.items() if tile != LARGE}  # which one scale has by itself
        made += [_variant(form, *BLOCKS[0][:2], tile, one=True, key=key) for key, tile in others.items()]
        if form is torch.int8:
            made += [_variant(form, taps, 128, LARGE, one=True, offset=True) for taps in (3, 2)]
            made += [_variant(form, 3, 128, tile, one=True, key=key, offset=True) for key, tile in others.items()]
    return made


def _variant(
    form: torch.dtype, taps: int, block: int, tile: Tile, *, one: bool, key: str = "", offset: bool = False
) -> Variant:
    from hqtvae_fast.ops.kernels.quantized_conv import triton_kernels

    name = "int8" if form is torch.int8 else "fp8"
    number = "*i8" if form is torch.int8 else "*fp8e4nv"
    signature = {"x": number, "weight": number, "x_scales": "*fp32", "weight_scales": "*fp32", "bias": "*fp32"}
    signature |= {"offsets": "*i32" if offset else "*fp32", "out": "*bf16"}
    signature |= dict.fromkeys(("pixels", "H", "W", "C", "N", "block"), "i32")
    title = f"8-bit convolution, {taps}x{taps}, {'one scale' if one else f'{block} channels a scale'}, {name}"
    title += (", offset" if offset else "") + (key and f", {key}")
    shape, kernel = constants(tile, form, taps, block, one, offset), triton_kernels.quantized_kernel
    return Variant(title, kernel, signature, shape, tuple(signature), tile.warps, tile.stages, ("mma", "async"))


SPEC = Spec(
    op="quantized_conv",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=exact,
    check=check,
    cost=cost,
    variants=variants,
    describe=describe,
    backends=BACKENDS,
    baselines={"bf16 convolution": in_bf16},
)
