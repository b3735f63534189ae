"""Launching the Triton kernel of attention over the cache (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import dense, dependents, launch, on, power_of_2

WIDEST = 128


@dataclass(frozen=True)
class Tile:
    """Positions that a program looks at together, and its warps."""

    block: int = 64
    warps: int = 4


DEFAULT = Tile()  # all positions of the paper's models at once, 32 values a thread
TILES = {
    f"{tile.block}x{tile.warps}": tile for tile in (Tile(16, 2), Tile(32, 2), Tile(32, 4), Tile(32, 8), Tile(128, 16))
}


def why_not(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    start: int,
    start_tensor: Tensor | None,
    tile: Tile = DEFAULT,
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    if qkv.shape[1] != 1 or qkv.shape[4] > WIDEST:
        return f"expected one position and heads of at most {WIDEST}; got {qkv.shape[1]} and {qkv.shape[4]}"
    if not (qkv.is_contiguous() and keys.is_contiguous() and values.is_contiguous()):
        return "expected contiguous tensors"
    return triton_launch.why_not(qkv, bias, keys, values)


def decode_attention(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    start: int,
    start_tensor: Tensor | None,
    tile: Tile = DEFAULT,
) -> Tensor:
    from hqtvae_fast.ops.kernels.decode_attention import triton_kernels

    B, _, _, H, E = qkv.shape
    out = torch.empty((B, 1, H * E), dtype=qkv.dtype, device=qkv.device)
    if start_tensor is None:
        start_tensor = torch.full((), start, dtype=torch.int64, device=qkv.device)
    if B == 0:
        return out
    with on(qkv):
        launch(
            triton_kernels.decode_attention_kernel,
            (B * H,),
            *(qkv, *dense(bias), keys, values, start_tensor, out, E**-0.5, H, E, keys.shape[2]),
            BLOCK=tile.block,
            WIDTH=power_of_2(E),
            TRIGGER=dependents(qkv),
            num_warps=tile.warps,
        )
    return out
