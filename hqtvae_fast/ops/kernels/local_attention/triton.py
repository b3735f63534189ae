"""Launching the Triton kernel of local attention (:mod:`.triton_kernels`)."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import Warps, by_warps, dense, dependents, launch, on, power_of_2

MOST_POSITIONS, WIDEST = 32, 128
TILES = by_warps(1, 2, 4)


def why_not(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor | None,
    values: Tensor | None,
    start: int,
    mask: str,
    tile: Warps | None = None,
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    T, E = qkv.shape[1], qkv.shape[4]
    if start + T > MOST_POSITIONS or E > WIDEST:
        return f"expected at most {MOST_POSITIONS} positions and heads of {WIDEST}; got {start + T} and {E}"
    return triton_launch.why_not(qkv, bias, keys, values)


def constants(T: int, parts: int, E: int, start: int, mask: str) -> dict[str, int | bool]:
    positions = power_of_2(start + T)
    fixed = {"START": start, "T": T, "PARTS": parts, "LEVELS": mask == "levels"}
    return fixed | {"POSITIONS": positions, "WIDTH": power_of_2(E)}


def warps(positions: int) -> int:
    """A warp for every 8 positions: 16 keys and as many values a thread for heads of 64."""
    return max(1, power_of_2(positions) // 8)


def local_attention(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor | None,
    values: Tensor | None,
    start: int,
    mask: str,
    tile: Warps | None = None,
) -> Tensor:
    from hqtvae_fast.ops.kernels.local_attention import triton_kernels

    B, T, parts, H, E = qkv.shape
    out = torch.empty((B, T, H * E), dtype=qkv.dtype, device=qkv.device)
    if B == 0:
        return out
    with on(qkv):
        launch(
            triton_kernels.local_attention_kernel,
            (B * H,),
            *(qkv, *dense(bias), keys, values, out, E**-0.5, H, E, 0 if keys is None else keys.shape[2]),
            **constants(T, parts, E, start, mask),
            TRIGGER=dependents(qkv),
            num_warps=tile.warps if tile else warps(start + T),
        )
    return out
