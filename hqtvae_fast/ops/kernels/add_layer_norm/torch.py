"""Sums by torch, each rounded, and its LayerNorm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def add_layer_norm(
    x: Tensor, added: Tensor | None, bias: Tensor | None, weight: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total = x.contiguous() if added is None else x + added
    total = total if bias is None else total + bias
    if total is x:  # an operator may not return its input
        total = x.clone()
    return total, F.layer_norm(total, x.shape[-1:], weight, shift, eps)
