"""Real cases, inputs, cost, tolerance and compilation of the last convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.conv_bytes import BACKENDS, conv_bytes
from hqtvae_fast.ops.kernels.conv_bytes.triton import TILES, Gathered, describe
from hqtvae_fast.ops.kernels.upsample_conv.triton import Tile
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

CASES = (
    Case("256x256x128, 8 images, bf16", {"B": 8, "C": 128, "H": 256, "N": 3}, torch.bfloat16),
    Case("256x256x128, 1 image, bf16", {"B": 1, "C": 128, "H": 256, "N": 3}, torch.bfloat16),
)
SMALL_CASES = (
    Case("one tile, bf16", {"B": 1, "C": 32, "H": 8, "N": 3}, torch.bfloat16),
    Case("no multiples of a tile, fp16", {"B": 3, "C": 64, "H": 7, "N": 3}, torch.float16),
    Case("one pixel, bf16", {"B": 2, "C": 32, "H": 1, "N": 3}, torch.bfloat16),
    Case("several tiles of pictures, bf16", {"B": 2, "C": 64, "H": 33, "N": 3}, torch.bfloat16),
)

CHANNELS = 3


def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels about 0.5, some beyond [-1, 1]."""
    B, C, H, N = (case[letter] for letter in "BCHN")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, C, H, H, generator=generator, dtype=torch.float32)
    weight = 0.5 * torch.randn(N, C, 3, 3, generator=generator, dtype=torch.float32) * (9 * C) ** -0.5
    options: dict[str, Any] = {"device": device, "dtype": case.dtype, "memory_format": torch.channels_last}
    bias = 0.1 * torch.randn(N, generator=generator, dtype=torch.float32)
    return x.to(**options), weight.to(**options), bias.to(device, case.dtype)


def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In fp64 and not rounded: levels from 0 to 255, [B, H, W, N]."""
    pixels = F.conv2d(x.cpu().double(), weight.cpu().double(), bias.cpu().double(), padding=1)
    return ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)


def cost(case: Case) -> Cost:
    """Nine taps; the map and the weights read once, bytes written."""
    B, C, H, N = (case[letter] for letter in "BCHN")
    return Cost(2 * B * H * H * N * 9 * C, case.dtype.itemsize * (B * C * H * H + 9 * N * C) + B * H * H * N)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """Half a level for the rounding, and what half a unit in the last place of a pixel in the inputs' dtype makes, for
    pixels that were rounded to it before: 0.25 levels in bf16; 1e-3 levels for sums in fp32."""
    assert got.dtype is torch.uint8, f"expected bytes; got {got.dtype}"
    assert got.is_contiguous(), f"expected [B, H, W, N] in order; got strides {got.stride()}"
    limit = 0.5 + 0.5 * torch.finfo(inputs[0].dtype).eps * 127.5 + 1e-3
    error = float((got.cpu().double() - wanted).abs().max())
    assert error <= limit, f"off by {error:.3f} levels, more than {limit:.3f}"


def variants(arch: int) -> list[Variant]:
    """The tiles in bf16; fp16 is left out, compiled as bf16 is but for the instruction's type."""
    return [_variant(name, tile) for name, tile in TILES.items()]


def _variant(name: str, tile: Tile) -> Variant:
    from hqtvae_fast.ops.kernels.conv_bytes import triton_kernels

    signature = {**dict.fromkeys(("x", "weight", "bias"), "*bf16"), "out": "*u8"}
    kernel: Any = triton_kernels.bytes_kernel
    if isinstance(tile, Gathered):
        kernel, shape = triton_kernels.gathered_kernel, {"N": CHANNELS, "HIGH": tile.high, "WIDE": tile.wide}
    else:
        signature, shape = signature | dict.fromkeys(("pixels", "N"), "i32"), {"ROWS": tile.rows}
    signature |= dict.fromkeys(("H", "W", "C"), "i32")
    aligned = tuple(key for key in signature if key != "N")
    constants = {**shape, "COLUMNS": tile.columns, "DEPTH": tile.depth, "WIDEN": False}
    what = f"last convolution to bytes, bf16, {name}"
    return Variant(what, kernel, signature, constants, aligned, tile.warps, tile.stages, ("mma", "async"))


SPEC = Spec(
    op="conv_bytes",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=conv_bytes,
    reference=exact,
    check=check,
    cost=cost,
    variants=variants,
    describe=describe,
    backends=BACKENDS,
)
