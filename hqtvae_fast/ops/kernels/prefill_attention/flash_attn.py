"""flash-attn's causal attention on q/k/v as our projection lays them out: [B, T, 3, H, E] -> [B, T, H, E].

The package is imported where it is asked for and nowhere else; it needs a GPU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hqtvae_fast.ops.third_party import why_not_attention


def why_not(qkv: Tensor, *others: Any) -> str | None:
    """None where it can take these queries, keys and values, else the reason."""
    return why_not_attention("flash_attn", qkv)


def attend(qkv: Tensor) -> Tensor:
    """Takes the projection's output as it is."""
    import flash_attn as package

    return package.flash_attn_qkvpacked_func(qkv, causal=True)
