"""Launching the Triton kernel of bias and GELU (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import dense, launch, on, rows


@dataclass(frozen=True)
class Tile:
    """Values and warps of a program."""

    values: int = 1024
    warps: int = 4


DEFAULT = Tile()  # 16 bytes a thread in bf16
TILES = {f"{tile.values}x{tile.warps}": tile for tile in (Tile(512, 2), Tile(1024, 2), Tile(2048, 4), Tile(2048, 8))}


def why_not(x: Tensor, bias: Tensor | None, form: str, tile: Tile = DEFAULT) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    return triton_launch.why_not(x, bias)


def bias_gelu(x: Tensor, bias: Tensor | None, form: str, tile: Tile = DEFAULT) -> Tensor:
    from hqtvae_fast.ops.kernels.bias_gelu import triton_kernels

    D = x.shape[-1]
    x_MD = rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        with on(x):
            launch(
                triton_kernels.bias_gelu_kernel,
                (x_MD.shape[0], -(-D // tile.values)),
                *(x_MD, *dense(bias), out, D, x_MD.stride(0)),
                EXACT=form == "exact",
                BLOCK=tile.values,
                num_warps=tile.warps,
            )
    return out
