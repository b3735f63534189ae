"""Attention over a whole sequence, as training and the autoencoder need it; drawing has kernels of its own (ops).

Shapes: B batch, H heads, T queries, S keys, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WRITTEN_OUT = 512
"""Keys, at most, with which training on a CPU writes its weights [B, H, T, S] to memory, for torch's own kernel is made
for long sequences. Forward and backward, in ms there and here (one thread of an EPYC): a head's 5 positions of 512
pyramids and 3 heads 11.3 and 8.0 in fp32, 14.9 and 6.1 in bf16; a body's 17 positions of 32 pictures 1.7 and 1.3, 7.4
and 1.3; an autoencoder's 64 positions of 16 pictures and 128 channels 2.5 and 2.4, 4.4 and 1.6."""


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T E^-1/2) v: [B, H, T, E] and twice [B, H, S, E] -> [B, H, T, E].

    ``mask`` [T, S] is True where a query may look; ``causal``: at its own position and those before it. As
    ``F.scaled_dot_product_attention``; where gradients are wanted on a CPU, in fewer and plainer passes. The softmax is
    in fp32 at least.
    """
    if not _written_out(q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = q @ k.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    return F.dropout(scores.softmax(dim=-1), dropout).to(v.dtype) @ v


def _written_out(q: Tensor, k: Tensor) -> bool:
    return q.is_cpu and q.requires_grad and torch.is_grad_enabled() and k.shape[2] <= WRITTEN_OUT
