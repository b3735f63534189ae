"""Torch's own attention, with what it takes to bring bias and cache to it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.local_attention.reference import level_mask

Maybe = Tensor | None


def local_attention(qkv: Tensor, bias: Maybe, keys: Maybe, values: Maybe, start: int, mask: str) -> Tensor:
    seen = level_mask(start, qkv.shape[1], qkv.device) if mask == "levels" else None
    q, k, v = cached(qkv, bias, keys, values, start)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)


def cached(qkv: Tensor, bias: Maybe, keys: Maybe, values: Maybe, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the new positions, keys and values of all, [B, H, positions, E] each; the cache is written."""
    _, T, _, H, E = qkv.shape
    parts = (qkv if bias is None else qkv + bias.view(-1, H, E)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k, v = parts[0], *parts[-2:]  # without queries: the key, as of one position the output is the value
    if keys is None or values is None:
        return q, k, v
    keys[:, :, start : start + T].copy_(k)
    values[:, :, start : start + T].copy_(v)
    return q, keys[:, :, : start + T], values[:, :, : start + T]
