"""How many of a codebook's codes do any work."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.model.hqvae import RESTART_SHARE


def perplexity(counts_K: Tensor) -> Tensor:
    """exp(entropy) of how often each code was chosen: a scalar from 1, always the same code, to K, all alike.

    Of no counts at all it is 1.
    """
    share_K = counts_K.double() / counts_K.sum().clamp(min=1e-12)
    return torch.special.entr(share_K).sum().exp()


def running_usage(cluster_size_K: Tensor) -> Tensor:
    """Share of codes whose running count (``Codebook.cluster_size``) reaches ``RESTART_SHARE`` of the mean count.

    Where unused codes are restarted, a restarted one counts as used until its running count has decayed: some hundred
    updates. The share of codes that held-out pictures choose has no such memory.
    """
    return (cluster_size_K >= RESTART_SHARE * cluster_size_K.mean()).float().mean()
