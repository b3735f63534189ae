"""The library's product, of any number of rows, then what follows it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.bias_gelu import bias_gelu
from hqtvae_fast.ops.kernels.skinny_linear.reference import moments_of


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: Any,
    prefetch: bool = False,
    norm: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 0.0,
    added: Tensor | None = None,
    moments: Tensor | None = None,
    *others: Any,
) -> Tensor:
    """A weight in 8 bits is widened in memory; bias and GELU are an op of their own, with a choice of its own."""
    if norm is not None:
        x = F.layer_norm(x if added is None else x + added, norm.shape, norm, shift, eps)
    plain = scale is None and gelu == "none"
    y = F.linear(x, weight.to(x.dtype), bias if plain else None)
    if scale is not None:
        y = (y * scale).to(x.dtype)
    if gelu != "none":
        y = bias_gelu(y, bias, gelu)
    elif bias is not None and not plain:
        y = y + bias
    if residual is not None:
        y = y + (residual if added is None or norm is not None else residual + added)
    if moments is not None and norm is None:
        moments.copy_(moments_of(y))
    return y
