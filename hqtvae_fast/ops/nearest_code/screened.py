"""Exact search at the speed of an fp32 product: score all codes roughly, then a few in float64.

Scores s_k = |e_k|^2 - 2 z.e_k differ from squared distances by |z|^2, which is the same for all codes. In fp32, summed
in any order, with or without fused multiply-add, each is off by at most

    bound = g (2 |z| E + E^2) + tiny,   g = (C + 8) u / (1 - (C + 8) u),   u = 2^-24,   E = max |e_k|,

where C + 8 rounded operations stand between the inputs and a score, |z_1 e_1| + ... <= |z| E (Cauchy-Schwarz), and tiny
is what products below the normal range may lose, even where they are flushed to zero. So the nearest code scores within
two bounds of the best score. Mostly it is alone there. Otherwise all that are there are compared in float64, as the
reference compares them. Where the bound overflows fp32 (norms beyond 1e18), that is all codes.

In plain torch, for any device; counting the near codes waits for the device once a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.nearest_code import reference

CHUNK_SCORES = 1 << 22  # held at once; 512 rows of 8192 codes, enough for the product's full speed
CHUNK_VALUES = 1 << 22  # of float64 differences held at once
ROUNDING = 2.0**-24
SMALLEST_NORMAL = 2.0**-126


def nearest_code(z_NC: Tensor, codebook_KC: Tensor) -> Tensor:
    """:func:`reference.nearest_code`: [N] int64."""
    exact_scores = torch.get_float32_matmul_precision() == "highest"  # otherwise fp32 products may run in TF32 or bf16
    if z_NC.dtype is torch.float64 or not exact_scores:
        return reference.nearest_code(z_NC, codebook_KC)
    z_NC, codebook_KC = z_NC.float(), codebook_KC.float()
    square_K = codebook_KC.double().square().sum(dim=1)
    rows = max(1, CHUNK_SCORES // len(codebook_KC))
    parts = [_search(part, codebook_KC, square_K) for part in z_NC.split(rows)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=z_NC.device)


def _search(z_NC: Tensor, codebook_KC: Tensor, square_K: Tensor) -> Tensor:
    scores_NK = torch.addmm(square_K.float(), z_NC, codebook_KC.T, alpha=-2)
    best_N = scores_NK.amin(dim=1)
    limit_N = (best_N.double() + 2 * _bound(z_NC, square_K)).float()
    limit_N += 4 * ROUNDING * limit_N.abs()  # for the rounding of these two lines
    near_NK = scores_NK <= limit_N[:, None]
    near_NK |= ~limit_N.isfinite()[:, None]  # nothing is known of such a row
    rows_P, codes_P = near_NK.nonzero(as_tuple=True)
    if len(rows_P) == len(z_NC):  # one a row
        return codes_P
    return _closest_pair(z_NC, codebook_KC, rows_P, codes_P)


def _bound(z_NC: Tensor, square_K: Tensor) -> Tensor:
    """How far each row's scores may be off: float64 [N]."""
    terms = z_NC.shape[1] + 8
    relative = terms * ROUNDING / (1 - terms * ROUNDING)
    longest = square_K.max().sqrt()
    length_N = z_NC.double().square().sum(dim=1).sqrt()
    return relative * (2 * length_N * longest + longest.square()) + 4 * terms * SMALLEST_NORMAL


def _closest_pair(z_NC: Tensor, codebook_KC: Tensor, rows_P: Tensor, codes_P: Tensor) -> Tensor:
    """Of the pairs (row, code), the closest in each row, ties to the lowest code; every row has one."""
    step = max(1, CHUNK_VALUES // max(1, z_NC.shape[1]))
    pairs = zip(rows_P.split(step), codes_P.split(step), strict=True)
    distance_P = torch.cat([reference.distances(z_NC[rows], codebook_KC[codes]) for rows, codes in pairs])
    least_N = distance_P.new_full((len(z_NC),), float("inf"))
    least_N.scatter_reduce_(0, rows_P, distance_P, "amin")
    closest_P = ~(distance_P > least_N[rows_P])  # of a row with NaN, all: its answer is 0
    found_N = codes_P.new_full((len(z_NC),), len(codebook_KC))
    return found_N.scatter_reduce_(0, rows_P[closest_P], codes_P[closest_P], "amin")
