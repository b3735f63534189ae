"""Real cases, inputs, cost, tolerance and compilations of folded upsampling."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.upsample_conv import BACKENDS, fold_upsampling, upsample_conv
from hqtvae_fast.ops.kernels.upsample_conv.triton import OTHERS, TILES, Tile, describe
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

CASES = (  # the decoder's four, and the first one alone
    Case("128x128x128, 8 images, bf16", {"B": 8, "C": 128, "H": 128, "N": 128}, torch.bfloat16),
    Case("64x64x256, 8 images, bf16", {"B": 8, "C": 256, "H": 64, "N": 256}, torch.bfloat16),
    Case("32x32x512, 8 images, bf16", {"B": 8, "C": 512, "H": 32, "N": 512}, torch.bfloat16),
    Case("16x16x512, 8 images, bf16", {"B": 8, "C": 512, "H": 16, "N": 512}, torch.bfloat16),
    Case("16x16x512, 1 image, bf16", {"B": 1, "C": 512, "H": 16, "N": 512}, torch.bfloat16),
)
SMALL_CASES = (
    Case("one tile, bf16", {"B": 1, "C": 32, "H": 8, "N": 64}, torch.bfloat16),
    Case("no multiples of a tile, fp16", {"B": 3, "C": 64, "H": 5, "N": 40}, torch.float16),
    Case("one pixel, bf16", {"B": 2, "C": 32, "H": 1, "N": 3}, torch.bfloat16),
)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
GRID = 2**5  # steps of a weight's size: sums of four fit bf16's eight bits


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """A map about 1 and weights that keep it there, as trained ones do, but on a grid where folding rounds nothing: the
    folded convolution and the one of the doubled map then have one definition."""
    B, C, H, N = (case[letter] for letter in "BCHN")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, C, H, H, generator=generator, dtype=torch.float32)
    weight = torch.randn(N, C, 3, 3, generator=generator, dtype=torch.float32).clamp_(-4, 4) * (GRID / 4)
    weight = weight.round_() * 2.0 ** (2 - math.log2(GRID) - round(math.log2(9 * C) / 2))
    bias = torch.randn(N, generator=generator, dtype=torch.float32)
    options: dict[str, Any] = {"device": device, "dtype": case.dtype, "memory_format": torch.channels_last}
    folded, weight = fold_upsampling(weight).to(**options), weight.to(**options)
    return x.to(**options), folded, bias.to(device, case.dtype), weight


def exact(x: Tensor, folded: Tensor, bias: Tensor, weight: Tensor | None = None) -> Tensor:
    """In fp64, phase by phase: each output's four products written out by shifting the map."""
    x, folded, bias = (tensor.cpu().double() for tensor in (x, folded, bias))
    B, _, H, W = x.shape
    out = torch.empty(B, len(bias), 2 * H, 2 * W, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1))
    for phase, weight in enumerate(folded.chunk(4)):
        p, q = divmod(phase, 2)
        total = bias[None, :, None, None].expand(B, -1, H, W).clone()
        for a in range(2):
            for b in range(2):
                moved = padded[:, :, p + a : p + a + H, q + b : q + b + W]
                total += torch.einsum("bchw,nc->bnhw", moved, weight[:, :, a, b])
        out[:, :, p::2, q::2] = total
    return out


def cost(case: Case) -> Cost:
    """Four taps an output; the map and the weights read once, the doubled map written once."""
    B, C, H, N = (case[letter] for letter in "BCHN")
    outputs = 4 * B * H * H * N
    return Cost(2 * outputs * 4 * C, case.dtype.itemsize * (B * C * H * H + 16 * N * C + outputs))


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """One unit in the last place, for the one rounding, and 2^-20 of the largest number for sums in fp32."""
    assert got.dtype == inputs[0].dtype, f"expected {inputs[0].dtype}; got {got.dtype}"
    assert got.is_contiguous(memory_format=torch.channels_last), f"expected channels-last; got {got.stride()}"
    unit = torch.finfo(got.dtype).eps * wanted.abs()
    over = (got.cpu().double() - wanted).abs() - unit - 2**-20 * wanted.abs().max()
    assert bool((over <= 0).all()), f"off by {float(over.max()):.2e} more than the limit"


def variants(arch: int) -> list[Variant]:
    """All tiles in bf16; fp16 is left out, compiled as bf16 is but for the instruction's type."""
    major, minor = divmod(arch, 10)
    return [_variant(tile) for tile in TILES.values() if tile.capability <= (major, minor)]


def _variant(tile: Tile) -> Variant:
    from hqtvae_fast.ops.kernels.upsample_conv import triton_kernels

    signature = dict.fromkeys(("x", "weight", "bias", "out"), "*bf16")
    signature |= dict.fromkeys(("pixels", "H", "W", "C", "N"), "i32")
    constants = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "WIDEN": False}
    size = tile.name if tile in OTHERS else f"{tile.rows}x{tile.columns}"
    name = f"upsampling {size}, bf16"
    needs = ("mma", "async")
    return Variant(
        name, triton_kernels.upsample_kernel, signature, constants, tuple(signature), tile.warps, tile.stages, needs
    )


SPEC = Spec(
    op="upsample_conv",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=upsample_conv,
    reference=exact,
    check=check,
    cost=cost,
    variants=variants,
    describe=describe,
    backends=BACKENDS,
)
