"""Launching the Triton kernels of the last convolution (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hqtvae_fast.ops.kernels.conv_bytes import reference
from hqtvae_fast.ops.kernels.upsample_conv.triton import Tile, constants, why_not_map
from hqtvae_fast.ops.triton_launch import interpreted, launch, on

TAPS = 9


@dataclass(frozen=True)
class Gathered(Tile):
    """Rows are pixels, ``wide`` of them side by side; columns are all taps of all outputs, and a pixel at the tile's
    edge is only read."""

    wide: int = 32

    @property
    def high(self) -> int:
        return self.rows // self.wide

    @property
    def name(self) -> str:
        return f"gathered-{self.high}x{self.wide}x{self.depth}"

    def programs(self, B: int, H: int, W: int) -> int:
        return B * -(-H // (self.high - 2)) * -(-W // (self.wide - 2))


# Three blocks of the first share an H100's multiprocessor, and have 192 KB of pixels under way.
GATHERED = (
    Gathered(256, 32, 64, warps=8, stages=2, wide=16),
    Gathered(256, 32, 32, warps=8, stages=4, wide=16),
    Gathered(512, 32, 32, warps=16, stages=3, wide=32),
    Gathered(128, 32, 64, warps=4, stages=2, wide=16),
)
# 16 columns are the fewest that both tensor cores' instructions and Triton take.
TILE = Tile(128, 16, 32, warps=4, stages=4)
OTHERS = (TILE, Tile(64, 16, 64, warps=4, stages=4), Tile(256, 16, 32, warps=8, stages=4))
TILES = {tile.name: tile for tile in (*GATHERED, *OTHERS)}


def pick_tile(channels: int, outputs: int) -> Tile:
    """One that reads a pixel once, unless there are too many outputs for that."""
    most = TAPS * outputs
    return next((tile for tile in GATHERED[:2] if most <= tile.columns and channels % tile.depth == 0), TILE)


def why_not(x: Tensor, weight: Tensor, bias: Tensor, *, tile: Tile | None = None) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    tile = tile or pick_tile(x.shape[1], len(bias))
    most = tile.columns // TAPS if isinstance(tile, Gathered) else tile.columns
    if len(bias) > most:
        return f"expected at most {most} output channels; got {len(bias)}"
    return why_not_map(x, weight, bias, tile)


def describe(x: Tensor, weight: Tensor, bias: Tensor, *, tile: Tile | None = None) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    B, C, H, W = x.shape
    tile = tile or pick_tile(C, len(bias))
    shape, programs = f"{tile.rows} pixels", -(-B * H * W // tile.rows)
    if isinstance(tile, Gathered):
        shape, programs = f"{tile.high}x{tile.wide} pixels, the outermost only read", tile.programs(B, H, W)
    return {
        "tile": f"{shape} x {tile.columns} channels, {tile.depth} input channels a step",
        "programs": f"{programs} of {tile.warps} warps, {tile.stages} stages",
    }


def conv_bytes(x: Tensor, weight: Tensor, bias: Tensor, *, tile: Tile | None = None) -> Tensor:
    """As :func:`reference.conv_bytes`."""
    from hqtvae_fast.ops.kernels.conv_bytes import triton_kernels

    B, C, H, W = x.shape
    out, tile = reference.empty_bytes(x, weight), tile or pick_tile(C, len(bias))
    given = (x, weight, bias.contiguous(), out)
    with on(x):
        if isinstance(tile, Gathered):
            grid = (tile.programs(B, H, W),)
            launch(triton_kernels.gathered_kernel, grid, *given, H, W, C, **gathered_constants(tile, len(bias)))
        else:
            grid = (-(-B * H * W // tile.rows),)
            launch(triton_kernels.bytes_kernel, grid, *given, B * H * W, H, W, C, len(bias), **constants(tile))
    return out


def gathered_constants(tile: Gathered, channels: int) -> dict[str, object]:
    """Of a launch."""
    shape = {"N": channels, "HIGH": tile.high, "WIDE": tile.wide, "COLUMNS": tile.columns, "DEPTH": tile.depth}
    return {**shape, "WIDEN": interpreted(), "num_warps": tile.warps, "num_stages": tile.stages}
