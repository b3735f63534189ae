"""The squared maximum mean discrepancy of two sets of features, unbiased: on FID's Inception this is KID.

Unlike the Fréchet distance its expectation does not depend on how many pictures there are, and it needs no more of them
than features are wide (Binkowski et al., 2018). The kernel is (x.y / d + 1)^3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hqtvae_fast.evaluate.arrays import require_finite

SUBSETS, SUBSET = 100, 1000  # of published figures


class KernelDistance(NamedTuple):
    """Mean and standard deviation over ``subsets`` draws of ``size`` features from each set."""

    mean: float
    deviation: float
    subsets: int
    size: int


def kernel_distance(
    references: Tensor, samples: Tensor, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 0
) -> KernelDistance:
    """Of features [M, d] and [N, d], in float64 on their device. Smaller sets are drawn whole. ValueError below 2 each.

    Which features a draw has depends on the seed and the sets' sizes alone.
    """
    if references.ndim != 2 or samples.ndim != 2 or references.shape[1] != samples.shape[1]:
        got = f"{list(references.shape)} and {list(samples.shape)}"
        raise ValueError(f"expected features [M, d] and [N, d]; got {got}")
    size = min(size, len(references), len(samples))
    if size < 2 or subsets < 1:
        raise ValueError(f"expected at least 2 features in each set, and a draw; got {size} and {subsets} draws")
    require_finite([("references", references), ("samples", samples)])
    if size == len(references) == len(samples):
        subsets = 1  # all draws would be the same
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(subsets):
        one, other = (
            features[torch.randperm(len(features), generator=generator)[:size].to(features.device)].double()
            for features in (references, samples)
        )
        found.append(squared_discrepancy(one, other))
    values = torch.stack(found)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), subsets, size)


def squared_discrepancy(one: Tensor, other: Tensor) -> Tensor:
    """The unbiased estimate from [m, d] and [n, d], m and n at least 2: a scalar, below 0 at times."""
    m, n = len(one), len(other)
    within_one, within_other, between = _kernel(one, one), _kernel(other, other), _kernel(one, other)
    own = (within_one.sum() - within_one.trace()) / (m * (m - 1))
    its = (within_other.sum() - within_other.trace()) / (n * (n - 1))
    return own + its - 2 * between.mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
