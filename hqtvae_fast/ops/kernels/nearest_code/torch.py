"""Exact search at the speed of an fp32 product: score all codes roughly, then a few in float64.

Scores s_k = |e_k|^2 - 2 z.e_k differ from squared distances by |z|^2, which is the same for all codes. In fp32, summed
in any order, with or without fused multiply-add, each is off by at most

    bound = g (2 |z| E + E^2) + tiny,   g = (C + 8) u / (1 - (C + 8) u),   u = 2^-24,   E = max |e_k|,

where C + 8 rounded operations stand between the inputs and a score, |z_1 e_1| + ... <= |z| E (Cauchy-Schwarz), and tiny
is what products below the normal range may lose, even where they are flushed to zero. So the nearest code scores within
two bounds of the best score. Mostly it is alone there. Otherwise all that are there are compared in float64, as the
reference compares them. Where a score's terms may overflow fp32 (norms beyond 1e18), that is all codes.

A code longer than the shortest code and twice the longest row together is nearest to no row, and is left out, so that E
is not its length. Training has such codes: what no vector chooses is its sum over a count of next to nothing, 10^5
times as long as the others. (1024 rows of 64 in 1024 codes, half of them such: 436 ms, and 3.7 without them.)

Passes over the scores cost as much as a fifth of the product each, so there is one: the least score of every group of
codes. Only in groups whose least score comes near are single scores looked at.

In plain torch, for any device; counting the near groups waits for the device once a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.nearest_code import reference

GROUP = 128  # codes; smaller ones leave too little of a vectorised minimum, 32 take twice as long
CHUNK_SCORES = 1 << 21  # held at once; 256 rows of 8192 codes: the product's full speed, and 8 MB stay in a CPU's cache
CHUNK_VALUES = 1 << 22  # of float64 differences held at once
ROUNDING = 2.0**-24
SLACK = 1e-3  # more than lengths are rounded by
SMALLEST_NORMAL = 2.0**-126
SAFE = 2.0**126  # sums whose terms' magnitudes add up to less do not overflow


def nearest_code(z_NC: Tensor, codebook_KC: Tensor) -> Tensor:
    """:func:`reference.nearest_code`: [N] int64."""
    if z_NC.dtype is torch.float64 or not products_are_fp32(z_NC.device):
        return reference.nearest_code(z_NC, codebook_KC)
    z_NC, codebook_KC = z_NC.float(), codebook_KC.float()
    N, K = len(z_NC), len(codebook_KC)
    scored = _within_reach(z_NC, codebook_KC)
    groups = -(-K // GROUP)
    rows = max(1, min(N, CHUNK_SCORES // (groups * GROUP)))
    # One buffer for all chunks: fresh pages would cost as much as the minimum. Codes that only fill a group never win.
    scores_RK = z_NC.new_full((rows, groups * GROUP), float("inf"))
    parts = [_search(part, codebook_KC, scored, scores_RK[: len(part)]) for part in z_NC.split(rows)] if N else []
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=z_NC.device)


class _Scored(NamedTuple):
    """Codes, and what their scores begin with; of a code that is nearest to no row, zeros and infinity."""

    codebook_KC: Tensor
    square_K: Tensor
    longest_square: Tensor
    """Of those that are left."""


def _within_reach(z_NC: Tensor, codebook_KC: Tensor) -> _Scored:
    length_K = torch.linalg.vector_norm(codebook_KC, dim=1)
    square_K = length_K.square()
    longest = torch.linalg.vector_norm(z_NC, dim=1).amax() if len(z_NC) else length_K.amax()
    far_K = length_K > (length_K.amin() + 2 * longest) * (1 + SLACK)  # where a row is not finite, none is
    if not bool(far_K.any()):
        return _Scored(codebook_KC, square_K, square_K.amax())
    left = square_K.masked_fill(far_K, 0.0).amax()
    return _Scored(codebook_KC.masked_fill(far_K[:, None], 0.0), square_K.masked_fill(far_K, float("inf")), left)


def products_are_fp32(device: torch.device) -> bool:
    """Whether nobody has allowed TF32 or bf16 in fp32 products there, as far as torch tells."""
    backend = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}.get(device.type)
    return backend is not None and backend.matmul.fp32_precision in ("none", "ieee")


def _search(z_NC: Tensor, codebook_KC: Tensor, scored: _Scored, scores_NP: Tensor) -> Tensor:
    """``scores_NP``: room for the rows' scores of P >= K codes, infinite beyond K."""
    N, K = len(z_NC), len(codebook_KC)
    torch.addmm(scored.square_K, z_NC, scored.codebook_KC.T, alpha=-2, out=scores_NP[:, :K])
    least_NG = scores_NP.view(N, -1, GROUP).amin(dim=2)
    limit_N = _limits(z_NC, scored, least_NG.amin(dim=1))
    unknown_N = ~limit_N.isfinite()  # nothing is known of such a row: all its codes are compared
    rows_Q, groups_Q = (~(least_NG > limit_N[:, None]) | unknown_N[:, None]).nonzero(as_tuple=True)
    near_QG = scores_NP.view(N, -1, GROUP)[rows_Q, groups_Q] <= limit_N[rows_Q, None]
    inside_QG = groups_Q[:, None] * GROUP + torch.arange(GROUP, dtype=torch.int64, device=z_NC.device)
    near_QG = (near_QG | unknown_N[rows_Q, None]) & (inside_QG < K)
    pairs, inside = near_QG.nonzero(as_tuple=True)
    rows_P, codes_P = rows_Q[pairs], groups_Q[pairs] * GROUP + inside
    if len(rows_P) == N:  # one a row
        return codes_P
    return _closest_pair(z_NC, codebook_KC, rows_P, codes_P)


def _limits(z_NC: Tensor, scored: _Scored, best_N: Tensor) -> Tensor:
    """What a row's nearest code cannot score more than: fp32 [N], not finite where nothing can be said."""
    terms = z_NC.shape[1] + 8
    relative = terms * ROUNDING / (1 - terms * ROUNDING)
    lost = terms * SMALLEST_NORMAL  # by squares below the normal range
    longest = (scored.longest_square.double() * (1 + 2 * relative) + lost).sqrt()
    length_N = torch.linalg.vector_norm(z_NC, dim=1, dtype=torch.float64)
    size_N = 2 * length_N * longest + longest.square()
    limit_N = best_N.double() + 2 * (relative * size_N + 4 * lost)
    limit_N = limit_N.masked_fill(~(size_N < SAFE), float("inf")).float()
    return limit_N + 4 * ROUNDING * limit_N.abs()  # for the rounding of these lines


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
