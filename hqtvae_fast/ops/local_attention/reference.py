"""The same in plain torch: the definition, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor

LEVEL_ENDS = (1, 5, 21)
"""The positions that each level's sees are those below its end."""


def local_attention(
    qkv_BT3HE: Tensor, bias: Tensor | None, keys_BHCE: Tensor | None, values_BHCE: Tensor | None, start: int, mask: str
) -> Tensor:
    B, T, _, H, E = qkv_BT3HE.shape
    wide = torch.promote_types(qkv_BT3HE.dtype, torch.float32)
    if bias is not None:
        qkv_BT3HE = (qkv_BT3HE.to(wide) + bias.to(wide).view(3, H, E)).to(qkv_BT3HE.dtype)
    q_BHTE, k_BHSE, v_BHSE = qkv_BT3HE.permute(2, 0, 3, 1, 4).unbind(0)
    if keys_BHCE is not None and values_BHCE is not None:
        end = start + T
        keys_BHCE[:, :, start:end].copy_(k_BHSE)
        values_BHCE[:, :, start:end].copy_(v_BHSE)
        k_BHSE, v_BHSE = keys_BHCE[:, :, :end], values_BHCE[:, :, :end]
    scores_BHTS = (q_BHTE.to(wide) * E**-0.5) @ k_BHSE.to(wide).transpose(2, 3)
    if mask == "levels":
        scores_BHTS.masked_fill_(~level_mask(start, T).to(scores_BHTS.device), float("-inf"))
    y_BHTE = scores_BHTS.softmax(dim=-1) @ v_BHSE.to(wide)
    return y_BHTE.transpose(1, 2).reshape(B, T, H * E).to(qkv_BT3HE.dtype)


def level_mask(start: int, T: int) -> Tensor:
    """[T, start + T], True where the new position of the row may look at the column's."""
    positions = torch.arange(start + T)
    ends = torch.tensor([next(end for end in LEVEL_ENDS if p < end) for p in range(start, start + T)])
    return positions[None, :] < ends[:, None]
