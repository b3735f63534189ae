"""Precision and recall of one set of features against another, by k nearest neighbours (Kynkaanniemi et al., 2019).

A set's manifold is the union of balls, one around each of its features, that reach to the feature's k-th nearest
neighbour in the set. Precision: the share of samples inside the reference's manifold; recall: the share of references
inside the samples'. Distances are computed block by block, so that memory does not grow with the product of the sets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hqtvae_fast.evaluate.arrays import require_finite

K = 3  # neighbours, as in published figures
BLOCK = 2048  # features on each side of one block of distances: 32 MB of float64
# Of the squared lengths: what |x|^2 + |y|^2 - 2 xy may be off in float64, so that what touches a ball is inside.
SLACK = 1e-12


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


def precision_recall(references: Tensor, samples: Tensor, k: int = K, block: int = BLOCK) -> PrecisionRecall:
    """Of features [M, d] and [N, d], computed in float64 on their device. ValueError unless both have more than k."""
    if references.ndim != 2 or samples.ndim != 2 or references.shape[1] != samples.shape[1]:
        got = f"{list(references.shape)} and {list(samples.shape)}"
        raise ValueError(f"expected features [M, d] and [N, d]; got {got}")
    require_finite([("references", references), ("samples", samples)])
    if k < 1 or min(len(references), len(samples)) <= k:
        raise ValueError(
            f"k={k}: expected at least 1, and more pictures than that in each set; got {len(references)} references"
            f" and {len(samples)} samples"
        )
    # Distances do not change with the origin; about the mean, squared lengths are small beside them and round less.
    centre = references.double().mean(dim=0)
    references, samples = references.double() - centre, samples.double() - centre
    return PrecisionRecall(
        precision=_share_inside(samples, references, squared_radii(references, k, block), block),
        recall=_share_inside(references, samples, squared_radii(samples, k, block), block),
    )


def squared_radii(features: Tensor, k: int, block: int = BLOCK) -> Tensor:
    """Squared distance of each of [N, d] to its k-th nearest neighbour among the others: [N]."""
    radii = []
    for rows in features.split(block):
        nearest = features.new_full((len(rows), 0), torch.inf)
        for columns in features.split(block):
            both = torch.cat([nearest, _squared_distances(rows, columns)], dim=1)
            nearest = both.topk(min(k + 1, both.shape[1]), dim=1, largest=False).values
        radii.append(nearest[:, k])  # number 0 is the feature itself, at distance 0
    return torch.cat(radii)


def _share_inside(points: Tensor, centres: Tensor, radii: Tensor, block: int) -> float:
    inside = 0
    for rows in points.split(block):
        found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for columns, limits in zip(centres.split(block), radii.split(block), strict=True):
            found |= (_squared_distances(rows, columns) <= limits + _slack(rows, columns)).any(dim=1)
        inside += int(found.sum())
    return inside / len(points)


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    lengths = rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)
    return torch.addmm(lengths, rows, columns.T, alpha=-2).clamp(min=0)


def _slack(rows: Tensor, columns: Tensor) -> Tensor:
    return SLACK * (rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1))
