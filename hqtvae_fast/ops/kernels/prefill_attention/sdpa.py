"""torch's own causal attention on q/k/v as our projection lays them out: [B, T, 3, H, E] -> [B, T, H, E]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend(qkv: Tensor) -> Tensor:
    q_BHTE, k_BHTE, v_BHTE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True).transpose(1, 2)
