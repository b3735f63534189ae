"""Launching the Triton kernel of the last convolution (:mod:`.triton_kernels`)."""

from __future__ import annotations

from torch import Tensor

from hqtvae_fast.ops.kernels.conv_bytes import reference
from hqtvae_fast.ops.kernels.upsample_conv.triton import Tile, constants, why_not_map
from hqtvae_fast.ops.triton_launch import launch, on

# Not yet measured on a GPU. 16 columns are the fewest that both tensor cores' instructions and Triton take.
TILE = Tile(128, 16, 32, warps=4, stages=4)


def why_not(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    if len(bias) > TILE.columns:
        return f"expected at most {TILE.columns} output channels; got {len(bias)}"
    return why_not_map(x, weight, bias)


def describe(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    pixels = x.numel() // x.shape[1]
    return {
        "tile": f"{TILE.rows} pixels x {TILE.columns} channels, {TILE.depth} input channels a step",
        "programs": f"{-(-pixels // TILE.rows)} of {TILE.warps} warps, {TILE.stages} stages",
    }


def conv_bytes(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As :func:`reference.conv_bytes`."""
    from hqtvae_fast.ops.kernels.conv_bytes import triton_kernels

    B, C, H, W = x.shape
    out = reference.empty_bytes(x, weight)
    with on(x):
        launch(
            triton_kernels.bytes_kernel,
            (-(-B * H * W // TILE.rows),),
            *(x, weight, bias.contiguous(), out, B * H * W, H, W, C, len(bias)),
            **constants(TILE),
        )
    return out
