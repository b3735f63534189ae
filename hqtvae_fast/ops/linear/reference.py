"""A product with what follows it, in plain torch: the definition, in any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.bias_gelu import reference as pointwise

INT8_LARGEST = 127


def linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: str,
    partials: Tensor | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Rounded after the product (as torch rounds) and after everything else."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = F.linear(x, weight.to(x.dtype)).to(wide)
    if scale is not None:
        y = y * scale.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    if gelu != "none":
        y = pointwise.bias_gelu(y, None, gelu)
    if residual is not None:
        y = y + residual.to(wide)
    return y.to(x.dtype)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [N, K] as int8 [N, K] and a scale fp32 [N] for each output: weight ~ int8 * scale, to the nearest."""
    scale = weight.float().abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / INT8_LARGEST
    return (weight.float() / scale[:, None]).round_().clamp_(-INT8_LARGEST, INT8_LARGEST).to(torch.int8), scale
