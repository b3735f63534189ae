"""The same in plain torch: the definition, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor

LEVEL_ENDS = (1, 5, 21)
"""The positions that each level's sees are those below its end."""


def local_attention(
    qkv_BTPHE: Tensor, bias: Tensor | None, keys_BHCE: Tensor | None, values_BHCE: Tensor | None, start: int, mask: str
) -> Tensor:
    B, T, _, H, E = qkv_BTPHE.shape
    wide = torch.promote_types(qkv_BTPHE.dtype, torch.float32)
    if bias is not None:
        qkv_BTPHE = (qkv_BTPHE.to(wide) + bias.to(wide).view(-1, H, E)).to(qkv_BTPHE.dtype)
    parts = qkv_BTPHE.permute(2, 0, 3, 1, 4).unbind(0)
    q_BHTE, k_BHSE, v_BHSE = parts[0], *parts[-2:]  # without queries: a key stands in, as any softmax of one is 1
    if keys_BHCE is not None and values_BHCE is not None:
        end = start + T
        keys_BHCE[:, :, start:end].copy_(k_BHSE)
        values_BHCE[:, :, start:end].copy_(v_BHSE)
        k_BHSE, v_BHSE = keys_BHCE[:, :, :end], values_BHCE[:, :, :end]
    scores_BHTS = (q_BHTE.to(wide) * E**-0.5) @ k_BHSE.to(wide).transpose(2, 3)
    if mask == "levels":
        scores_BHTS.masked_fill_(~level_mask(start, T, scores_BHTS.device), float("-inf"))
    y_BHTE = scores_BHTS.softmax(dim=-1) @ v_BHSE.to(wide)
    return y_BHTE.transpose(1, 2).reshape(B, T, H * E).to(qkv_BTPHE.dtype)


def level_mask(start: int, T: int, device: torch.device) -> Tensor:
    """[T, start + T], True where the new position of the row may look at the column's; made on the device, since a copy
    to it would wait."""
    positions_S = torch.arange(start + T, dtype=torch.int64, device=device)
    ends_T = torch.zeros_like(positions_S[start:])
    for end in reversed(LEVEL_ENDS):
        ends_T = torch.where(positions_S[start:] < end, end, ends_T)
    return positions_S < ends_T[:, None]
