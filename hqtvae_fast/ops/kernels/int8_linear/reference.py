"""The product of 8-bit numbers in plain torch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 255
TINY = torch.finfo(torch.float32).tiny


def round_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [M, K] as numbers u uint8 [M, K], scale fp32 [M, 1] and zero int32 [M, 1]: x ~ scale * (u - zero).

    The least and the largest number of a row, or 0 where that is beyond, are 0 and 255. The scale of a row that holds
    an infinity or NaN is NaN.
    """
    x = x.float()
    low, high = x.amin(dim=1, keepdim=True).clamp(max=0.0), x.amax(dim=1, keepdim=True).clamp(min=0.0)
    finite = x.isfinite().all(dim=1, keepdim=True)
    scale = torch.where(finite, ((high - low) / LEVELS).clamp(min=TINY), 1.0)
    zero = torch.where(finite, (-low / scale).round(), 0.0)
    numbers = torch.where(finite, (x / scale).round() + zero, 0.0).clamp(0, LEVELS)
    return numbers.to(torch.uint8), scale.masked_fill(~finite, torch.nan), zero.to(torch.int32)


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    packed: Tensor | None = None,
    padded_scale: Tensor | None = None,
    totals: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """See :func:`hqtvae_fast.ops.int8_linear`. Whole numbers are multiplied in float64, which holds their sums."""
    numbers, own, zero = round_rows(x.reshape(-1, x.shape[-1]))
    sums = (numbers.double() - zero.double()) @ weight.double().T
    y = sums.float() * (own * scale)
    if bias is not None:
        y = y + bias.float()
    return (F.gelu(y) if gelu else y).to(x.dtype).reshape(*x.shape[:-1], len(weight))
