"""The reference's draw, bit for bit, by operators that never wait for the device: a captured graph may hold them.

Filters are applied at whatever k and p the device holds, also where they drop nothing: both sorts are always made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.sample_logits.noise import gumbel, random_words
from hqtvae_fast.ops.kernels.sample_logits.reference import NEG_INF, drop_tail


def sample_logits(
    logits_BK: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds_B: Tensor,
    step: Tensor,
    position: Tensor,
) -> Tensor:
    """As :func:`reference.sample_logits`, of filters in scalars on the device: k = K and p = 1 drop nothing."""
    scaled_BK = logits_BK.float() / temperature
    ordered_BK = scaled_BK.sort(dim=1, descending=True).values
    kth_B1 = ordered_BK.gather(1, (top_k - 1).expand(len(logits_BK), 1))
    scaled_BK = scaled_BK.masked_fill(scaled_BK < kth_B1, NEG_INF)
    scaled_BK = torch.where(top_p < 1, drop_tail(scaled_BK, top_p), scaled_BK)
    noise_BK = gumbel(random_words(seeds_B, step, position, logits_BK.shape[1]))
    return torch.where(top_k == 1, logits_BK.argmax(dim=1), (scaled_BK + noise_BK).argmax(dim=1))
