"""Launching the Triton kernel of the last convolution (:mod:`.triton_kernels`)."""

from __future__ import annotations

from torch import Tensor

from hqtvae_fast.ops.kernels.conv_bytes import reference
from hqtvae_fast.ops.kernels.upsample_conv.triton import Tile, constants, why_not_map
from hqtvae_fast.ops.triton_launch import launch, on

# 16 columns are the fewest that both tensor cores' instructions and Triton take.
TILE = Tile(128, 16, 32, warps=4, stages=4)
OTHERS = (
    Tile(64, 16, 32, warps=4, stages=4),
    Tile(64, 16, 64, warps=4, stages=4),
    Tile(128, 16, 64, warps=4, stages=4),
    Tile(256, 16, 32, warps=8, stages=4),
    Tile(256, 16, 64, warps=8, stages=3),
)
TILES = {tile.name: tile for tile in OTHERS}


def why_not(x: Tensor, weight: Tensor, bias: Tensor, *, tile: Tile = TILE) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    if len(bias) > tile.columns:
        return f"expected at most {tile.columns} output channels; got {len(bias)}"
    return why_not_map(x, weight, bias, tile)


def describe(x: Tensor, weight: Tensor, bias: Tensor, *, tile: Tile = TILE) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    pixels = x.numel() // x.shape[1]
    return {
        "tile": f"{tile.rows} pixels x {tile.columns} channels, {tile.depth} input channels a step",
        "programs": f"{-(-pixels // tile.rows)} of {tile.warps} warps, {tile.stages} stages",
    }


def conv_bytes(x: Tensor, weight: Tensor, bias: Tensor, *, tile: Tile = TILE) -> Tensor:
    """As :func:`reference.conv_bytes`."""
    from hqtvae_fast.ops.kernels.conv_bytes import triton_kernels

    B, C, H, W = x.shape
    out = reference.empty_bytes(x, weight)
    with on(x):
        launch(
            triton_kernels.bytes_kernel,
            (-(-B * H * W // tile.rows),),
            *(x, weight, bias.contiguous(), out, B * H * W, H, W, C, len(bias)),
            **constants(tile),
        )
    return out
