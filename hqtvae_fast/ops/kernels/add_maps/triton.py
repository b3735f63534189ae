"""Launching the Triton kernel of the sum of maps (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import launch, on


@dataclass(frozen=True)
class Tile:
    """Values and warps of a program."""

    values: int = 4096
    warps: int = 8

    def rows(self, C: int) -> int:
        """Pixels of C channels."""
        return self.values // C


DEFAULT = Tile()  # 16 values a thread: two loads of 16 bytes of each map in bf16
OTHERS = (Tile(2048, 4), Tile(2048, 8), Tile(4096, 4), Tile(8192, 8))
TILES = {f"{tile.values}x{tile.warps}": tile for tile in OTHERS}


def why_not(x: Tensor, residual: Tensor, shift: Tensor, tile: Tile = DEFAULT) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    for name, tensor in (("x", x), ("residual", residual)):
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            return f"{name}: expected channels-last memory; got strides {tensor.stride()} for {list(tensor.shape)}"
    pixels, C = x.numel() // x.shape[1], x.shape[1]
    if C & (C - 1) or tile.values < C:
        return f"expected a power of two, up to {tile.values} channels; got {C}"
    if pixels >= 2**31 - tile.values:
        return f"expected fewer than 2^31 pixels in all; got {list(x.shape)}"
    return triton_launch.why_not(x, residual, shift)


def describe(x: Tensor, residual: Tensor, shift: Tensor, tile: Tile = DEFAULT) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    pixels, C = x.numel() // x.shape[1], x.shape[1]
    return {
        "tile": f"{tile.rows(C)} pixels x {C} channels",
        "programs": f"{-(-pixels // tile.rows(C))} of {tile.warps} warps",
    }


def add_maps(x: Tensor, residual: Tensor, shift: Tensor, tile: Tile = DEFAULT) -> Tensor:
    """As :func:`reference.add_maps`."""
    from hqtvae_fast.ops.kernels.add_maps import triton_kernels

    total, pixels, C = torch.empty_like(x), x.numel() // x.shape[1], x.shape[1]
    with on(x):
        launch(
            triton_kernels.add_kernel,
            (-(-pixels // tile.rows(C)),),
            *(x, residual, shift.contiguous(), total, pixels),
            C=C,
            ROWS=tile.rows(C),
            num_warps=tile.warps,
        )
    return total
