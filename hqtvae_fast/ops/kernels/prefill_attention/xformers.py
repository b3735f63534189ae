"""xFormers's causal attention on q/k/v as our projection lays them out: [B, T, 3, H, E] -> [B, T, H, E].

The package is imported where it is asked for and nowhere else; it needs a GPU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hqtvae_fast.ops.third_party import why_not_attention


def why_not(qkv: Tensor, *others: Any) -> str | None:
    """None where it can take these queries, keys and values, else the reason."""
    return why_not_attention("xformers", qkv)


def attend(qkv: Tensor) -> Tensor:
    """Reads queries, keys and values as strided views of the projection's output."""
    from xformers import ops

    q_BTHE, k_BTHE, v_BTHE = qkv.unbind(2)
    return ops.memory_efficient_attention(q_BTHE, k_BTHE, v_BTHE, attn_bias=ops.LowerTriangularMask())
