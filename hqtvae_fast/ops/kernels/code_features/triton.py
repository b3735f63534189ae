"""Launching the Triton kernel that gathers and adds rows of tables (:mod:`.triton_kernels`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.kernels.code_features import reference
from hqtvae_fast.ops.triton_launch import launch, on, power_of_2

MOST_LEVELS = 3


@dataclass(frozen=True)
class Tile:
    """Values and warps of a program."""

    values: int = 2048
    warps: int = 4

    def shape(self, C: int) -> tuple[int, int]:
        """Pixels and channels."""
        channels = power_of_2(C)
        return self.values // channels, channels


DEFAULT = Tile()  # 16 values a thread: two 16-byte loads in bf16 from each table
TILES = {f"{tile.values}x{tile.warps}": tile for tile in (Tile(1024, 4), Tile(2048, 8), Tile(4096, 8))}


def why_not(codes: Sequence[Tensor], tables: Sequence[Tensor], base: Tensor, tile: Tile = DEFAULT) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    if len(codes) > MOST_LEVELS:
        return f"expected up to {MOST_LEVELS} levels; got {len(codes)}"
    if base.shape[1] > tile.values:
        return f"expected up to {tile.values} channels; got {base.shape[1]}"
    return triton_launch.why_not(*tables, base)


def describe(codes: Sequence[Tensor], tables: Sequence[Tensor], base: Tensor, tile: Tile = DEFAULT) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    pixels, channels = tile.shape(base.shape[1])
    count = codes[0].numel() * tables[0].shape[1]
    return {
        "tile": f"{pixels} pixels x {channels} channels, {tile.warps} warps",
        "programs": f"{-(-count // pixels)}",
    }


def code_features(codes: Sequence[Tensor], tables: Sequence[Tensor], base: Tensor, tile: Tile = DEFAULT) -> Tensor:
    """As :func:`reference.code_features`."""
    from hqtvae_fast.ops.kernels.code_features import triton_kernels

    out = reference.empty_features(codes, tables, base)
    B, C, H, W = out.shape
    windows = [math.isqrt(table.shape[1]) for table in tables] + [0] * (MOST_LEVELS - len(tables))
    levels = [(level.contiguous(), table.contiguous()) for level, table in zip(codes, tables, strict=True)]
    levels += levels[:1] * (MOST_LEVELS - len(levels))  # not read
    pixels, channels = tile.shape(C)
    with on(base):
        launch(
            triton_kernels.features_kernel,
            (-(-B * H * W // pixels),),
            *(tensor for level in levels for tensor in level),
            *(base.contiguous(), out, B * H * W, H, W, C),
            *windows,
            FB=math.isqrt(len(base)),
            PIXELS=pixels,
            CHANNELS=channels,
            num_warps=tile.warps,
        )
    return out
