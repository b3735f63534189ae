"""Launching the Triton kernel of folded upsampling (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.kernels.upsample_conv import reference
from hqtvae_fast.ops.triton_launch import capability_at_least, interpreted, launch, multiprocessors, on

DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tile:
    """Pixels and output channels of one program, and input channels of one step."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    capability: tuple[int, int] = (8, 0)
    """The least that it is for: below, it would spill."""

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}"


# LARGE: 64 sums a thread, and 64 KB of shared memory, so that on an H100 two blocks share a
# multiprocessor. SMALL: for so few pixels that LARGE's programs would leave multiprocessors idle (one image at 16x16
# and 512 channels is 32 programs of LARGE).
LARGE, SMALL = Tile(128, 128, 32, warps=8, stages=4), Tile(64, 64, 32, warps=4, stages=4)
DEFAULTS = (LARGE, SMALL)
ENOUGH_PROGRAMS = 2  # for each multiprocessor
# WIDE and TALL: a third more FLOP a byte from the caches, and two fifths of LARGE's instructions for as many products.
# One of their blocks fills a multiprocessor as two of LARGE's do, on Hopper alone: below, they would spill.
HOPPER = (9, 0)
WIDE = Tile(128, 256, 64, warps=8, stages=3, capability=HOPPER)
TALL = Tile(256, 128, 64, warps=8, stages=3, capability=HOPPER)
OTHERS = (Tile(128, 128, 64, warps=8, stages=3), WIDE, Tile(128, 256, 32, warps=8, stages=4), TALL)
TILES = {tile.name: tile for tile in (*DEFAULTS, *OTHERS)}


def pick_tile(pixels: int, channels: int, outputs: int, count: int, hopper: bool) -> Tile:
    """For ``count`` multiprocessors, which are Hopper's or not."""
    if _programs(pixels, outputs, LARGE) < ENOUGH_PROGRAMS * count:
        return SMALL
    if not hopper or channels % WIDE.depth:
        return LARGE
    return next((tile for tile in (WIDE, TALL) if outputs % tile.columns == 0), LARGE)


def why_not_map(x: Tensor, weight: Tensor, bias: Tensor, tile: Tile) -> str | None:
    """None where products of this map can be taken by tiles, else the reason."""
    if any(tensor.dtype not in DTYPES or tensor.dtype != x.dtype for tensor in (x, weight, bias)):
        return f"expected bf16 or fp16 throughout; got {x.dtype}, {weight.dtype} and {bias.dtype}"
    if x.shape[1] % tile.depth:
        return f"expected input channels in multiples of {tile.depth}; got {x.shape[1]}"
    if not capability_at_least(x, tile.capability):
        return (
            f"expected compute capability {tile.capability[0]}.{tile.capability[1]} or above for tiles of {tile.name}"
        )
    for name, tensor in (("x", x), ("weight", weight)):
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            return f"{name}: expected channels-last memory; got strides {tensor.stride()} for {list(tensor.shape)}"
    if 4 * x.numel() // x.shape[1] >= 2**31:
        return f"expected fewer than 2^29 pixels in all; got {list(x.shape)}"
    return triton_launch.why_not(x, weight, bias)


def why_not(x: Tensor, folded: Tensor, bias: Tensor, weight: Tensor | None = None, *, tile: Tile = LARGE) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    return why_not_map(x, folded, bias, tile)


def describe(
    x: Tensor, folded: Tensor, bias: Tensor, weight: Tensor | None = None, *, tile: Tile | None = None
) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    pixels, channels = x.numel() // x.shape[1], len(bias)
    tile = tile or _pick(x, channels)
    return {
        "tile": f"{tile.rows} pixels x {tile.columns} channels of one phase, {tile.depth} input channels a step",
        "programs": f"{_programs(pixels, channels, tile)} of {tile.warps} warps, {tile.stages} stages",
    }


def upsample_conv(
    x: Tensor, folded: Tensor, bias: Tensor, weight: Tensor | None = None, *, tile: Tile | None = None
) -> Tensor:
    """As :func:`reference.upsample_conv`."""
    from hqtvae_fast.ops.kernels.upsample_conv import triton_kernels

    B, C, H, W = x.shape
    N = len(bias)
    out = reference.empty_doubled(x, folded)
    tile = tile or _pick(x, N)
    with on(x):
        launch(
            triton_kernels.upsample_kernel,
            (_programs(B * H * W, N, tile),),
            *(x, folded, bias.contiguous(), out, B * H * W, H, W, C, N),
            **constants(tile),
        )
    return out


def _pick(x: Tensor, outputs: int) -> Tile:
    B, C, H, W = x.shape
    return pick_tile(B * H * W, C, outputs, multiprocessors(x.device), capability_at_least(x, HOPPER))


def constants(tile: Tile) -> dict[str, object]:
    """Of a launch."""
    shape = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "WIDEN": interpreted()}
    return {**shape, "num_warps": tile.warps, "num_stages": tile.stages}


def _programs(pixels: int, channels: int, tile: Tile) -> int:
    return 4 * -(-pixels // tile.rows) * -(-channels // tile.columns)
