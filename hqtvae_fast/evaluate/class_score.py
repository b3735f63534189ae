"""How sure a classifier is of each picture, and how many classes it sees: on Inception this is the Inception Score.

exp of the mean divergence of each picture's classes from all pictures' (Salimans et al., 2016), in ten splits: a
picture's split is its number modulo 10, so that neither the order of a set nor how it was cut among workers matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPLITS = 10


@dataclass(frozen=True)
class ClassSums:
    """Of each split's pictures: ``counts`` [S]; ``shares`` [S, C], the sum of their class probabilities; ``certainty``
    [S], the sum of p log p over pictures and classes. float64 on the CPU; sums of parts are those of the whole."""

    counts: Tensor
    shares: Tensor
    certainty: Tensor

    @classmethod
    def of(cls, logits: Tensor, indices: Sequence[int]) -> ClassSums:
        """Of logits [B, C] of the pictures with these numbers."""
        logs = logits.double().log_softmax(dim=1).cpu()
        splits = torch.tensor([index % SPLITS for index in indices], dtype=torch.int64)
        probabilities = logs.exp()
        zeros = torch.zeros(SPLITS, logits.shape[1], dtype=torch.float64)
        certainty = torch.special.entr(probabilities).sum(dim=1).neg()
        return cls(
            splits.bincount(minlength=SPLITS).double(),
            zeros.index_add(0, splits, probabilities),
            zeros[:, 0].index_add(0, splits, certainty),
        )

    def __add__(self, other: ClassSums) -> ClassSums:
        return ClassSums(self.counts + other.counts, self.shares + other.shares, self.certainty + other.certainty)

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits that have pictures: from 1 to the number of classes."""
        held = self.counts > 0
        counts = self.counts[held]
        overall = torch.special.entr(self.shares[held] / counts[:, None]).sum(dim=1)
        scores = (self.certainty[held] / counts + overall).exp()
        return float(scores.mean()), float(scores.std(correction=0))
