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

    def slots(self, width: int) -> int:
        """Positions that the warps have side by side in int8, 16 numbers a lane."""
        return min(self.block, 512 * self.warps // width)

    def __str__(self) -> str:
        return f"{self.block}x{self.warps}"


DEFAULT = Tile()  # all positions of the paper's models at once, 32 values a thread
INT8 = Tile(16, 1)  # the fewest instructions a program, of those counted in the head comment of its kernel
OTHERS = (Tile(16, 1), Tile(32, 1), Tile(64, 1), Tile(16, 2), Tile(32, 2), Tile(32, 4), Tile(32, 8), Tile(128, 16))
TILES = {str(tile): tile for tile in OTHERS}
INT8_TILES = {str(tile): tile for tile in (Tile(32, 1), Tile(64, 1), Tile(32, 2), Tile(64, 2), Tile(64, 4))}


def why_not(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    start: int,
    start_tensor: Tensor | None,
    scales: Tensor | None = None,
    tile: Tile = DEFAULT,
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    if scales is not None:
        return "expected keys and values in the queries' dtype, and no scales; 'triton/int8' takes those"
    return _why_not(qkv, bias, keys, values)


def why_not_int8(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    start: int,
    start_tensor: Tensor | None,
    scales: Tensor | None = None,
    tile: Tile = INT8,
) -> str | None:
    """The same of keys and values in 8 bits."""
    if scales is None:
        return f"expected keys and values in int8, and their scales; got {keys.dtype} and none"
    return _why_not(qkv, bias, keys, values, scales)


def _why_not(qkv: Tensor, bias: Tensor | None, *cached: Tensor) -> str | None:
    if qkv.shape[1] != 1 or qkv.shape[4] > WIDEST:
        return f"expected one position and heads of at most {WIDEST}; got {qkv.shape[1]} and {qkv.shape[4]}"
    if not (qkv.is_contiguous() and all(part.is_contiguous() for part in cached)):
        return "expected contiguous tensors"
    return triton_launch.why_not(qkv, bias, *cached)


def decode_attention(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    start: int,
    start_tensor: Tensor | None,
    scales: Tensor | None = None,
    tile: Tile = DEFAULT,
) -> Tensor:
    from hqtvae_fast.ops.kernels.decode_attention import triton_kernels

    B, _, _, H, E = qkv.shape
    out = torch.empty((B, 1, H * E), dtype=qkv.dtype, device=qkv.device)
    if B == 0:
        return out
    with on(qkv):
        launch(
            triton_kernels.decode_attention_kernel,
            (B * H,),
            *(qkv, *dense(bias), keys, values, _place(qkv, start, start_tensor), out, E**-0.5, H, E, keys.shape[2]),
            BLOCK=tile.block,
            WIDTH=power_of_2(E),
            TRIGGER=dependents(qkv),
            num_warps=tile.warps,
        )
    return out


def decode_attention_int8(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    start: int,
    start_tensor: Tensor | None,
    scales: Tensor | None = None,
    tile: Tile = INT8,
) -> Tensor:
    from hqtvae_fast.ops.kernels.decode_attention import triton_kernels

    B, _, _, H, E = qkv.shape
    out = torch.empty((B, 1, H * E), dtype=qkv.dtype, device=qkv.device)
    if B == 0:
        return out
    sizes = (E**-0.5, H, E, keys.shape[2])
    with on(qkv):
        launch(
            triton_kernels.decode_attention_int8_kernel,
            (B, H),
            *(qkv, *dense(bias), keys, values, scales, _place(qkv, start, start_tensor), out, *sizes),
            **int8_constants(tile, E),
            TRIGGER=dependents(qkv),
            num_warps=tile.warps,
        )
    return out


def int8_constants(tile: Tile, E: int) -> dict[str, int]:
    """What the kernel for 8 bits is compiled for, of heads of E."""
    width = power_of_2(E)
    return {"ROWS": tile.block // tile.slots(width), "SLOTS": tile.slots(width), "WIDTH": width}


def _place(qkv: Tensor, start: int, start_tensor: Tensor | None) -> Tensor:
    if start_tensor is not None:
        return start_tensor
    return torch.full((), start, dtype=torch.int64, device=qkv.device)
