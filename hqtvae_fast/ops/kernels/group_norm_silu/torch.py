"""Torch's GroupNorm and SiLU, on NCHW copies of maps that lie otherwise: what its kernels on a GPU want."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.group_norm_silu import reference


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
    form: str | None = None,
    scale: float = 1.0,
    zero: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`reference.forward`."""
    B, C, H, W = x.shape
    total = x if shift is None else x.to(torch.promote_types(x.dtype, torch.float32)) + shift[:, None, None]
    total = (total if residual is None else total + residual).to(x.dtype)
    dense, affine = total.contiguous(), (weight.to(x.dtype), bias.to(x.dtype))
    y, mean, rstd = torch.ops.aten.native_group_norm(dense, *affine, B, C, H * W, num_groups, eps)
    y = torch.nn.functional.silu(y, inplace=True) if silu else y
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.new_empty(0) if residual is None else total
    y = reference.in_form(torch.empty_like(x).copy_(y), form, scale, zero)
    return y, total, mean.to(wide), rstd.to(wide)


backward = reference.backward
