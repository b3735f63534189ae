"""The codebook's exponential-moving-average update: statistics of a batch, then the step itself.

In two halves, for between them a distributed run sums the statistics over its ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.kernels.ema_update import reference, triton
from hqtvae_fast.ops.operator import dispatched


def code_statistics(
    z: Tensor, codes: Tensor, num_codes: int, *, deterministic: bool = False, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """How many rows chose each code, [K], and the sum of those rows, [K, C]: fp32, or fp64 for fp64 rows.

    ``z`` [N, C] floating point, ``codes`` [N] int64 in [0, K), K = ``num_codes``; on one device. A code outside raises
    on a CPU; on a GPU its row is left out. ``deterministic``: sums are the same bit by bit in every run on one device;
    on a CPU they always are, on a GPU the rows are sorted for it. ``backend``: "triton" (CUDA) or "reference". No
    gradient. Raises ValueError on other shapes or dtypes, BackendError where the backend asked for cannot run.
    """
    if z.ndim != 2 or codes.shape != z.shape[:1]:
        raise ValueError(f"code_statistics: expected [N, C] and [N]; got {list(z.shape)} and {list(codes.shape)}")
    if not z.is_floating_point() or codes.dtype is not torch.int64 or z.device != codes.device:
        raise ValueError(
            f"code_statistics: expected floating z and int64 codes on one device; "
            f"got {z.dtype} on {z.device} and {codes.dtype} on {codes.device}"
        )
    if num_codes < 1:
        raise ValueError(f"num_codes: expected at least 1; got {num_codes}")
    inputs = (z.detach(), codes, num_codes, deterministic)
    choice = choose("ema_update", STATISTICS, *inputs, backend=backend)
    return torch.ops.hqtvae_fast.code_statistics(*inputs, choice.backend.name)


def ema_update(
    embedding: Tensor,
    cluster_size: Tensor,
    embedding_sum: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    epsilon: float,
    *,
    backend: str | None = None,
) -> None:
    """One step in place on ``embedding`` [K, C], ``cluster_size`` [K] and ``embedding_sum`` [K, C].

    With n and m the running counts and sums, c and s those of :func:`code_statistics`:
    n <- decay n + (1 - decay) c,  m <- decay m + (1 - decay) s,  e_k = m_k / ((n_k + epsilon) / (T + K epsilon) T),
    T the sum of n (Laplace smoothing). All of one floating dtype on one device; "triton" takes fp32. Raises ValueError
    on other shapes or dtypes, BackendError where the backend asked for cannot run.
    """
    K, C = embedding.shape if embedding.ndim == 2 else (0, 0)
    values: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "embedding_sum": (embedding_sum, (K, C)),
        "sums": (sums, (K, C)),
        "cluster_size": (cluster_size, (K,)),
        "counts": (counts, (K,)),
    }
    for name, (tensor, shape) in values.items():
        if K == 0 or tuple(tensor.shape) != shape or tensor.dtype != embedding.dtype:
            raise ValueError(
                f"{name}: expected {list(shape)} in {embedding.dtype} for embedding {list(embedding.shape)}; "
                f"got {list(tensor.shape)} in {tensor.dtype}"
            )
    inputs = (embedding, cluster_size, embedding_sum, counts, sums, decay, epsilon)
    choice = choose("ema_update", UPDATE, *inputs, backend=backend)
    torch.ops.hqtvae_fast.ema_update(*inputs, choice.backend.name)


STATISTICS = (
    Backend("triton", triton.code_statistics, triton.why_not_statistics),
    Backend("reference", reference.code_statistics, reference.why_not_statistics),
)
UPDATE = (
    Backend("triton", triton.ema_update, triton.why_not_update),
    Backend("reference", reference.ema_update),
)


@dispatched("code_statistics", STATISTICS, mutates_args=())
def _code_statistics(
    z: Tensor, codes: Tensor, num_codes: int, deterministic: bool, backend: str
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(z.dtype, torch.float32)
    return z.new_empty(num_codes, dtype=wide), z.new_empty((num_codes, z.shape[1]), dtype=wide)


@dispatched("ema_update", UPDATE, mutates_args=("embedding", "cluster_size", "embedding_sum"))
def _ema_update(
    embedding: Tensor,
    cluster_size: Tensor,
    embedding_sum: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    epsilon: float,
    backend: str,
) -> None:
    return None


__all__ = ["code_statistics", "ema_update"]
