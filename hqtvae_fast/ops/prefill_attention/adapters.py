"""Other people's causal attention, called with q/k/v as our projection lays them out: [B, T, 3, H, E] -> [B, T, H, E].

flash-attn and xformers are imported where they are asked for and nowhere else; both need a GPU.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


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
    return _why_not("flash_attn", qkv)


def why_not_xformers(qkv: Tensor, *others: Any) -> str | None:
    """None where xformers can, else the reason."""
    return _why_not("xformers", qkv)


def _why_not(package: str, qkv: Tensor) -> str | None:
    if not qkv.is_cuda or qkv.dtype not in HALF:
        return f"expected bf16 or fp16 on a CUDA device; got {qkv.dtype} on {qkv.device}"
    return None if importlib.util.find_spec(package) else f"{package} is not installed"
