"""The EMA codebook step in plain torch: the definition that kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor


def why_not_statistics(z_NC: Tensor, codes_N: Tensor, num_codes: int, deterministic: bool) -> str | None:
    """None where sums are as reproducible as is asked, else the reason."""
    return "torch adds in no fixed order on a GPU" if deterministic and z_NC.is_cuda else None


def code_statistics(
    z_NC: Tensor, codes_N: Tensor, num_codes: int, deterministic: bool = False
) -> tuple[Tensor, Tensor]:
    """How many rows chose each code, [K], and their sum, [K, C], in fp32 or, for fp64 rows, fp64."""
    wide = torch.promote_types(z_NC.dtype, torch.float32)
    counts_K = torch.bincount(codes_N, minlength=num_codes).to(wide)
    sums_KC = torch.zeros(num_codes, z_NC.shape[1], dtype=wide, device=z_NC.device)
    return counts_K, sums_KC.index_add_(0, codes_N, z_NC.to(wide))


def ema_update(
    embedding_KC: Tensor,
    cluster_size_K: Tensor,
    embedding_sum_KC: Tensor,
    counts_K: Tensor,
    sums_KC: Tensor,
    decay: float,
    epsilon: float,
) -> None:
    """In place: decay the running counts and sums, then e_k = sum_k / smoothed count_k (Laplace smoothing)."""
    cluster_size_K.mul_(decay).add_(counts_K, alpha=1 - decay)
    embedding_sum_KC.mul_(decay).add_(sums_KC, alpha=1 - decay)
    total = cluster_size_K.sum()
    smoothed_K = (cluster_size_K + epsilon) / (total + epsilon * len(cluster_size_K)) * total
    embedding_KC.copy_(embedding_sum_KC / smoothed_K[:, None])
