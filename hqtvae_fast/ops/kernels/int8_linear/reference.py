"""The product of 8-bit numbers in plain torch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 255
GROUP = 64
"""Inputs that are rounded with one scale. With one a row, the demo model's bottom logits are 2.4e-3 nats (KL) from
fp32's, with one for each 64 inputs 1.9e-3, of which the weights' rounding alone is 1.1e-3."""
TINY = torch.finfo(torch.float32).tiny


def round_groups(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [M, K] as numbers u uint8 [M, G, 64], the last ones of nothing, scale fp32 [M, G, 1] and zero int32
    [M, G, 1] of each group: x ~ scale * (u - zero).

    The least and the largest number of a group, or 0 where that is beyond, are 0 and 255. The scale of a group that
    holds an infinity or NaN is NaN.
    """
    x = F.pad(x.float(), (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    low, high = x.amin(dim=2, keepdim=True).clamp(max=0.0), x.amax(dim=2, keepdim=True).clamp(min=0.0)
    finite = x.isfinite().all(dim=2, keepdim=True)
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
    """See :func:`hqtvae_fast.ops.int8_linear`. Whole numbers are multiplied in fp32, which holds a group's sums."""
    numbers, own, zero = round_groups(x.reshape(-1, x.shape[-1]))
    moved = numbers.float() - zero
    parts = F.pad(weight.float(), (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    y = own.new_zeros(len(numbers), len(weight))
    for group in range(moved.shape[1]):  # in this order
        y = y + (moved[:, group] @ parts[:, group].T) * own[:, group]
    y = y * scale
    if bias is not None:
        y = y + bias.float()
    return (F.gelu(y) if gelu else y).to(x.dtype).reshape(*x.shape[:-1], len(weight))
