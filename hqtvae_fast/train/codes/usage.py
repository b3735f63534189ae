"""How many of a codebook's codes do any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

RECENT = 100  # updates


def perplexity(counts_K: Tensor) -> Tensor:
    """exp(entropy) of how often each code was chosen: a scalar from 1, always the same code, to K, all alike.

    Of no counts at all it is 1.
    """
    share_K = counts_K.double() / counts_K.sum().clamp(min=1e-12)
    return torch.special.entr(share_K).sum().exp()


class RecentCodes:
    """Which codes were chosen of late, by level: part of a run's state, so that it is the same for a run in pieces.

    A code's running count (``Codebook.cluster_size``) does not tell: a restarted code is given that of one in use, and
    is restarted again before it has decayed, whether or not anything ever chose it.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.idle = [torch.full((size,), RECENT, dtype=torch.int64, device=device) for size in sizes]

    def add(self, level: int, counts_K: Tensor) -> Tensor:
        """Take the counts of an update; returns the share of codes that the last ``RECENT`` updates chose, a scalar."""
        idle_K = self.idle[level]
        idle_K.add_(1).mul_(counts_K == 0)
        return (idle_K < RECENT).float().mean()

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"idle": [idle_K.cpu() for idle_K in self.idle]}

    def load_state_dict(self, state: Mapping[str, list[Tensor]]) -> None:
        for idle_K, saved_K in zip(self.idle, state["idle"], strict=True):
            idle_K.copy_(saved_K)
