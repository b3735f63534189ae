"""Launching the kernels of the EMA codebook step (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import launch, on


@dataclass(frozen=True)
class Tile:
    """Rows (or codes) and channels of one program."""

    rows: int
    width: int
    warps: int = 4


# 256 bytes of fp32 a row keep whole sectors busy; 16 values a thread in flight.
ROWS, SEGMENTS, SMOOTH = Tile(32, 64), Tile(16, 128), Tile(16, 128)


def why_not_statistics(z: Tensor, codes: Tensor, num_codes: int, deterministic: bool) -> str | None:
    """None where the kernels can take these inputs, else the reason."""
    return triton_launch.why_not(z)


def why_not_update(*arguments: Tensor | float) -> str | None:
    """None where the kernel can take this state and these statistics, else the reason."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    other = next((tensor for tensor in tensors if tensor.dtype is not torch.float32), None)
    if other is not None:
        return f"expected state and statistics in fp32; got {other.dtype}"
    if not all(tensor.is_contiguous() for tensor in tensors):
        return "expected contiguous state and statistics"
    return triton_launch.why_not(*tensors)


def code_statistics(z: Tensor, codes: Tensor, num_codes: int, deterministic: bool) -> tuple[Tensor, Tensor]:
    """Counts [K] and sums [K, C], fp32."""
    z = z if z.stride(1) == 1 else z.contiguous()
    with on(z):
        return _by_segments(z, codes, num_codes) if deterministic else _by_atomics(z, codes, num_codes)


def _by_atomics(z_NC: Tensor, codes_N: Tensor, K: int) -> tuple[Tensor, Tensor]:
    from hqtvae_fast.ops.kernels.ema_update import triton_kernels

    N, C = z_NC.shape
    counts_K, sums_KC = (torch.zeros(shape, dtype=torch.float32, device=z_NC.device) for shape in ((K,), (K, C)))
    if N > 0:
        launch(
            triton_kernels.add_rows,
            (-(-N // ROWS.rows), -(-C // ROWS.width)),
            *(z_NC, codes_N.contiguous(), counts_K, sums_KC, N, K, C, z_NC.stride(0)),
            ROWS=ROWS.rows,
            WIDTH=ROWS.width,
            num_warps=ROWS.warps,
        )
    return counts_K, sums_KC


def _by_segments(z_NC: Tensor, codes_N: Tensor, K: int) -> tuple[Tensor, Tensor]:
    from hqtvae_fast.ops.kernels.ema_update import triton_kernels

    C = z_NC.shape[1]
    counts_K, sums_KC = (torch.empty(shape, dtype=torch.float32, device=z_NC.device) for shape in ((K,), (K, C)))
    sorted_N, order_N = codes_N.sort(stable=True)
    starts = torch.searchsorted(sorted_N, torch.arange(K + 1, dtype=torch.int64, device=codes_N.device))
    launch(
        triton_kernels.add_segments,
        (K, -(-C // SEGMENTS.width)),
        *(z_NC, order_N, starts, counts_K, sums_KC, C, z_NC.stride(0)),
        ROWS=SEGMENTS.rows,
        WIDTH=SEGMENTS.width,
        num_warps=SEGMENTS.warps,
    )
    return counts_K, sums_KC


def ema_update(
    embedding: Tensor,
    cluster_size: Tensor,
    embedding_sum: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    epsilon: float,
) -> None:
    """As :func:`reference.ema_update`: the K counts in torch, the K x C values in one pass."""
    from hqtvae_fast.ops.kernels.ema_update import triton_kernels

    K, C = embedding.shape
    cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
    with on(embedding):
        launch(
            triton_kernels.smooth,
            (-(-K // SMOOTH.rows), -(-C // SMOOTH.width)),
            *(embedding, embedding_sum, sums, cluster_size, cluster_size.sum().reshape(1), decay, epsilon, K, C),
            CODES=SMOOTH.rows,
            WIDTH=SMOOTH.width,
            num_warps=SMOOTH.warps,
        )
