"""Rows of tables gathered and added, in plain torch: the definition that the kernel is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def code_features(codes: Sequence[Tensor], tables: Sequence[Tensor], base: Tensor) -> Tensor:
    """The sum in fp32 at least, then in the tables' dtype: [B, C, H, W], channels-last."""
    out = empty_features(codes, tables, base)
    B, C, H, W = out.shape
    side = math.isqrt(len(base))
    wide = torch.promote_types(base.dtype, torch.float32)
    sum_BHWC = base.to(wide).view(1, 1, side, 1, side, C).expand(B, H // side, side, W // side, side, C)
    sum_BHWC = sum_BHWC.reshape(B, H, W, C)
    for level_BHW, table_KPC in zip(codes, tables, strict=True):
        f = math.isqrt(table_KPC.shape[1])
        rows = F.embedding(level_BHW, table_KPC.flatten(1)).view(B, H // f, W // f, f, f, C)
        sum_BHWC = sum_BHWC + rows.transpose(2, 3).reshape(B, H, W, C)
    return out.copy_(sum_BHWC.permute(0, 3, 1, 2))


def empty_features(codes: Sequence[Tensor], tables: Sequence[Tensor], base: Tensor) -> Tensor:
    """[B, C, H, W] in channels-last memory, unset."""
    (B, h, w), f = codes[0].shape, math.isqrt(tables[0].shape[1])
    shape = (B, base.shape[1], h * f, w * f)
    return torch.empty(shape, dtype=base.dtype, device=base.device, memory_format=torch.channels_last)
