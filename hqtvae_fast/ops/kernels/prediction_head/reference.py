"""The same in plain torch: the definition, in any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.prediction_head.weights import (
    BOTTOMS,
    LAYER_NORM_EPS,
    BlockWeights,
    HeadWeights,
    LevelWeights,
)
from hqtvae_fast.ops.kernels.sample_logits import sample_logits
from hqtvae_fast.ops.kernels.skinny_linear import reference as skinny

Cached = list[tuple[Tensor, Tensor]]
"""Keys and values [B, H, 1, E] of position 0, a block each."""


def prediction_head(
    h_BD: Tensor,
    codes_B5: Tensor,
    invalid: Tensor,
    seeds_B: Tensor,
    step: Tensor,
    temperature_2: Tensor,
    top_k_2: Tensor,
    top_p_2: Tensor,
    weights: HeadWeights,
    num_heads: int,
    gelu: str,
    draw_top: bool,
) -> None:
    """See :func:`hqtvae_fast.ops.prediction_head`."""
    cached: Cached = []
    for level, start in ((0, 0), (1, 1)):
        end = 1 if level == 0 else 1 + BOTTOMS
        logits_BGK = _logits(h_BD, codes_B5, weights, num_heads, gelu, level, cached)
        if level == 0 and not draw_top:
            continue
        sample_logits(
            logits_BGK,
            temperature=temperature_2[level],
            top_k=top_k_2[level],
            top_p=top_p_2[level],
            seeds=seeds_B,
            step=step,
            position=start,
            out=codes_B5[:, start:end],
            invalid=invalid,
        )


def logits(h_BD: Tensor, codes_B5: Tensor, weights: HeadWeights, num_heads: int, gelu: str) -> tuple[Tensor, Tensor]:
    """Logits [B, 1, K] and [B, 4, K] where the top codes are known."""
    cached: Cached = []
    top, bottom = (_logits(h_BD, codes_B5, weights, num_heads, gelu, level, cached) for level in (0, 1))
    return top, bottom


def _logits(
    h_BD: Tensor, codes_B5: Tensor, weights: HeadWeights, num_heads: int, gelu: str, level: int, cached: Cached
) -> Tensor:
    """One pass. The first fills ``cached``, the second reads it."""
    if level == 0:
        x_BGD = (h_BD + weights.start)[:, None]
    else:
        x_BGD = weights.codes[codes_B5[:, 0]][:, None] + weights.positions
    for number, block in enumerate(weights.blocks):
        x_BGD = _block(x_BGD, block, num_heads, gelu, cached, number)
    own: LevelWeights = weights.levels[level]
    return _linear(_norm(x_BGD, own.norm_weight, own.norm_bias), own.logits, own.logits_scale, None)


def _block(x_BGD: Tensor, block: BlockWeights, num_heads: int, gelu: str, cached: Cached, number: int) -> Tensor:
    B, G, D = x_BGD.shape
    qkv = _linear(_norm(x_BGD, block.norm1_weight, block.norm1_bias), block.qkv, block.qkv_scale, block.qkv_bias)
    q_BHGE, k_BHSE, v_BHSE = qkv.view(B, G, 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if number < len(cached):
        k_BHSE, v_BHSE = (torch.cat(pair, dim=2) for pair in zip(cached[number], (k_BHSE, v_BHSE), strict=True))
    else:
        cached.append((k_BHSE, v_BHSE))
    y_BGD = F.scaled_dot_product_attention(q_BHGE, k_BHSE, v_BHSE).transpose(1, 2).reshape(B, G, D)
    x_BGD = x_BGD + _linear(y_BGD, block.out, block.out_scale, block.out_bias)
    inside = _linear(_norm(x_BGD, block.norm2_weight, block.norm2_bias), block.up, block.up_scale, block.up_bias)
    inside = F.gelu(inside) if gelu == "exact" else inside * torch.sigmoid(1.702 * inside)
    return x_BGD + _linear(inside, block.down, block.down_scale, block.down_bias)


def _linear(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    if scale is None:
        return F.linear(x, weight, bias)
    return skinny.skinny_linear(x, weight, scale, bias, None, "none")


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, LAYER_NORM_EPS)
