"""Launching the Triton kernel of residual, bias and LayerNorm (:mod:`.triton_kernels`)."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import Warps, by_warps, dense, dependents, launch, on, power_of_2, row_warps, rows

WIDEST = 1 << 13
TILES = by_warps(2, 4, 8)


def why_not(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float = 0.0,
    tile: Warps | None = None,
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    if x.shape[-1] > WIDEST:
        return f"expected at most {WIDEST} values a row; got {x.shape[-1]}"
    return triton_launch.why_not(x, added, bias, weight, shift)


def add_layer_norm(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    tile: Warps | None = None,
) -> tuple[Tensor, Tensor]:
    from hqtvae_fast.ops.kernels.add_layer_norm import triton_kernels

    D = x.shape[-1]
    x_MD = rows(x)
    added_MD = None if added is None else rows(added)
    total, normal = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    if x_MD.shape[0] == 0:
        return total, normal
    with on(x):
        launch(
            triton_kernels.add_layer_norm_kernel,
            (x_MD.shape[0],),
            *(x_MD, added_MD, *dense(bias, weight, shift), total, normal, eps, D),
            *(x_MD.stride(0), 0 if added_MD is None else added_MD.stride(0)),
            WIDTH=power_of_2(D),
            TRIGGER=dependents(x),
            num_warps=tile.warps if tile else row_warps(D),
        )
    return total, normal
