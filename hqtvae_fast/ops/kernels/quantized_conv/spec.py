"""Real cases, inputs, cost, tolerance and compilations of 8-bit convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.quantized_conv import BACKENDS, LARGEST, quantize, quantize_weights, quantized_conv
from hqtvae_fast.ops.kernels.quantized_conv.triton import LARGE, TILES, constants, describe, pick_tile
from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling, upsample_conv
from hqtvae_fast.ops.kernels.upsample_conv.reference import interleave
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

FORMATS = {0: torch.int8, 1: torch.float8_e4m3fn}
CASES = (  # "k": channels of a scale
    Case("256x256x128, int8", {"B": 8, "C": 128, "H": 256, "N": 128, "k": 128, "folded": 0, "fp8": 0}, torch.bfloat16),
    Case("256x256x128, fp8", {"B": 8, "C": 128, "H": 256, "N": 128, "k": 128, "folded": 0, "fp8": 1}, torch.bfloat16),
    Case("64x64x256, int8, 32s", {"B": 8, "C": 256, "H": 64, "N": 256, "k": 32, "folded": 0, "fp8": 0}, torch.bfloat16),
    Case(
        "64x64x256 doubled, int8",
        {"B": 8, "C": 256, "H": 64, "N": 256, "k": 256, "folded": 1, "fp8": 0},
        torch.bfloat16,
    ),
)
SMALL_CASES = (
    Case("int8, two scales", {"B": 2, "C": 64, "H": 5, "N": 40, "k": 32, "folded": 0, "fp8": 0}, torch.bfloat16),
    Case("int8, one scale", {"B": 1, "C": 64, "H": 12, "N": 130, "k": 64, "folded": 0, "fp8": 0}, torch.float32),
    Case("fp8", {"B": 1, "C": 64, "H": 6, "N": 32, "k": 32, "folded": 0, "fp8": 1}, torch.float32),
    Case("int8, doubled", {"B": 2, "C": 32, "H": 3, "N": 24, "k": 32, "folded": 1, "fp8": 0}, torch.float32),
    Case("fp8, doubled", {"B": 1, "C": 32, "H": 4, "N": 32, "k": 32, "folded": 1, "fp8": 1}, torch.bfloat16),
)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, torch.dtype]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """A map as after an activation, of which a few numbers are beyond the scales, and weights that keep it as large."""
    B, C, H, N = (case[letter] for letter in "BCHN")
    generator, form = torch.Generator().manual_seed(seed), FORMATS[case["fp8"]]
    x = F.silu(torch.randn(B, C, H, H, generator=generator, dtype=torch.float32)).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randn(N, C, 3, 3, generator=generator, dtype=torch.float32) * (9 * C) ** -0.5
    numbers, weight_scales = quantize_weights(fold_upsampling(weight) if case["folded"] else weight, form)
    x_scales = 0.9 * x.abs().amax(dim=(0, 2, 3)).view(-1, case["k"]).amax(dim=1) / LARGEST[form]
    tensors = (
        quantize(x, x_scales, form),
        numbers,
        x_scales,
        weight_scales,
        torch.randn(N, generator=generator, dtype=torch.float32),
    )
    x, numbers, x_scales, weight_scales, bias = (tensor.to(device) for tensor in tensors)
    return x, numbers, x_scales, weight_scales, bias, case.dtype


def run(*inputs: Any, backend: str | None = None) -> Tensor:
    *tensors, dtype = inputs
    return quantized_conv(*tensors, dtype=dtype, backend=backend)


def exact(
    x: Tensor, weight: Tensor, x_scales: Tensor, weight_scales: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    """In fp64, of the numbers times their scales."""
    numbers = (tensor.cpu().float() for tensor in (x, weight, x_scales, weight_scales, bias))
    x, weight, x_scales, weight_scales, bias = (tensor.double() for tensor in numbers)
    wide = x * x_scales.repeat_interleave(x.shape[1] // len(x_scales))[:, None, None]
    y = F.conv2d(wide, weight * weight_scales[:, None, None, None], bias.repeat(len(weight) // len(bias)), padding=1)
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


def in_bf16(
    x: Tensor, weight: Tensor, x_scales: Tensor, weight_scales: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    """What 8 bits have to beat: bf16 convolutions of the same shapes; what the numbers are is of no matter for time."""
    wide, weights = (torch.empty_like(numbers, dtype=torch.bfloat16) for numbers in (x, weight))
    if len(weight) == len(bias):
        return F.conv2d(wide, weights, bias.bfloat16(), padding=1)
    return upsample_conv(wide, weights, bias.bfloat16())


def variants(arch: int) -> list[Variant]:
    """One scale and several, in steps of both widths, both kinds of weights; fp8 where there is such an instruction."""
    formats = (torch.int8, torch.float8_e4m3fn) if arch >= 90 else (torch.int8,)
    blocks = ((3, 128, True), (2, 128, True), (3, 32, False), (3, 128, False), (2, 128, False))
    made = [_variant(form, *each, hopper=arch >= 90) for form in formats for each in blocks]
    others = {key: tile for key, tile in TILES.items() if tile != LARGE}  # which one scale has by itself
    return made + [_variant(form, *blocks[0], hopper=arch >= 90, tiled=key) for form in formats for key in others]


def _variant(form: torch.dtype, taps: int, block: int, one: bool, *, hopper: bool, tiled: str = "") -> Variant:
    from hqtvae_fast.ops.kernels.quantized_conv import triton_kernels

    name = "int8" if form is torch.int8 else "fp8"
    number = "*i8" if form is torch.int8 else "*fp8e4nv"
    signature = {"x": number, "weight": number, "x_scales": "*fp32", "weight_scales": "*fp32", "bias": "*fp32"}
    signature |= {"out": "*bf16"} | dict.fromkeys(("pixels", "H", "W", "C", "N", "block"), "i32")
    title = f"8-bit convolution, {taps}x{taps}, {'one scale' if one else f'{block} channels a scale'}, {name}"
    title, tile = title + (tiled and f", {tiled}"), TILES[tiled] if tiled else pick_tile(1 if one else 2, hopper)
    shape, kernel = constants(tile, form, taps, block, one), triton_kernels.quantized_kernel
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
