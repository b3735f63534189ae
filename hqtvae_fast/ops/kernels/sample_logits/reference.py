"""Temperature, top-k, top-p and the draw, in plain torch: the definition that kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.sample_logits.noise import gumbel, random_words

NEG_INF = float("-inf")


def guided_logits(shown: Tensor, withheld: Tensor, scale: Tensor) -> Tensor:
    """u + scale (c - u) in float32, each operation rounded by itself, of logits c with the condition shown and u with
    it withheld. c itself, bit for bit, where the scale is 1 and where both are equal, infinite ones too."""
    c, u = shown.float(), withheld.float()
    return torch.where((scale == 1) | (c == u), c, u + scale * (c - u))


def filter_logits(logits_BK: Tensor, temperature: Tensor | float, top_k: int | None, top_p: float | None) -> Tensor:
    """Scaled logits [B, K] in float32, -inf where an entry may not be drawn.

    logits / temperature; keep entries >= the k-th largest (ties with it stay); of their softmax, sorted by
    probability (equal ones by index), keep up to and including the first whose cumulative sum reaches p.
    """
    scaled_BK = logits_BK.float() / temperature
    if top_k is not None and top_k < scaled_BK.shape[1]:
        kth_B1 = scaled_BK.topk(top_k, dim=1).values[:, -1:]
        scaled_BK = scaled_BK.masked_fill(scaled_BK < kth_B1, NEG_INF)
    return scaled_BK if top_p is None else drop_tail(scaled_BK, top_p)


def drop_tail(scaled_BK: Tensor, top_p: Tensor | float) -> Tensor:
    """-inf after the first entry, in order of probability, at which the cumulative sum reaches p."""
    sorted_BK, order_BK = scaled_BK.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    reached_BK = sorted_BK.cumsum(dim=1) >= top_p
    drop_BK = torch.zeros_like(reached_BK)
    drop_BK[:, 1:] = reached_BK[:, :-1]
    drop_BK = torch.zeros_like(drop_BK).scatter(1, order_BK, drop_BK)
    return scaled_BK.masked_fill(drop_BK, NEG_INF)


def sample_logits(
    logits_BK: Tensor,
    temperature: Tensor | float,
    top_k: int | None,
    top_p: float | None,
    seeds_B: Tensor,
    step: Tensor | int,
    position: Tensor | int,
) -> Tensor:
    """Draw one index a row, [B] int64, with probability softmax(filtered logits): argmax of logit + Gumbel noise."""
    if top_k == 1:
        return logits_BK.argmax(dim=1)
    scaled_BK = filter_logits(logits_BK, temperature, top_k, top_p)
    noise_BK = gumbel(random_words(seeds_B, step, position, logits_BK.shape[1]))
    return (scaled_BK + noise_BK).argmax(dim=1)
