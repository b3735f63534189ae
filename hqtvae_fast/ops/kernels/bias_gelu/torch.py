"""Bias and GELU by torch, each step rounded."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor | None, form: str) -> Tensor:
    y = x.contiguous() if bias is None else x + bias
    return F.gelu(y) if form == "exact" else y * (1.702 * y).sigmoid()
