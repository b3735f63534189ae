"""Other people's causal attention, called with q/k/v as our projection lays them out: [B, T, 3, H, E] -> [B, T, H, E].

flash-attn and xformers are imported where they are asked for and nowhere else; both need a GPU.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.third_party import why_not_attention


def sdpa(qkv: Tensor) -> Tensor:
    q_BHTE, k_BHTE, v_BHTE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True).transpose(1, 2)


def flash_attn(qkv: Tensor) -> Tensor:
    """Takes the projection's output as it is."""
    import flash_attn as package

    return package.flash_attn_qkvpacked_func(qkv, causal=True)


def xformers(qkv: Tensor) -> Tensor:
    """Reads queries, keys and values as strided views of the projection's output."""
    from xformers import ops

    q_BTHE, k_BTHE, v_BTHE = qkv.unbind(2)
    return ops.memory_efficient_attention(q_BTHE, k_BTHE, v_BTHE, attn_bias=ops.LowerTriangularMask())


def why_not_flash_attn(qkv: Tensor, *others: Any) -> str | None:
    """None where flash-attn can take these queries, keys and values, else the reason."""
    return why_not_attention("flash_attn", qkv)


def why_not_xformers(qkv: Tensor, *others: Any) -> str | None:
    """None where xformers can, else the reason."""
    return why_not_attention("xformers", qkv)
