"""Soft-label cross-entropy in plain torch, row chunk by row chunk: the definition that kernels are held to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ENTRIES = 1 << 20  # labels held at once: with what is made of them 20 MB, 3% of 64 images' logits in fp32


def soft_labels(z_MC: Tensor, codebook_KC: Tensor, temperature: float) -> Tensor:
    """softmax(-|z - e_k|^2 / temperature) over the codes: [M, K].

    |z|^2 is the same for every code and drops out of the softmax; leaving it out also spares its rounding error.
    """
    scores_MK = torch.addmm(codebook_KC.square().sum(dim=1), z_MC, codebook_KC.T, beta=-1, alpha=2)
    return (scores_MK / temperature).softmax(dim=1)


def forward(logits_NK: Tensor, z_NC: Tensor, codebook_KC: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss, and nothing kept of the rows for the backward pass: fp32 [0, N]."""
    nothing = logits_NK.new_empty((0, len(logits_NK)), dtype=torch.float32)
    return loss(logits_NK, z_NC, codebook_KC, temperature), nothing


def loss(logits_NK: Tensor, z_NC: Tensor, codebook_KC: Tensor, temperature: float) -> Tensor:
    """Mean over rows of -sum_k target_k log softmax(logits)_k: a scalar in fp32, or fp64 for fp64 logits."""
    sums = []
    for rows in _chunks(logits_NK):
        target_MK = soft_labels(z_NC[rows], codebook_KC, temperature)
        log_probabilities_MK = _wide(logits_NK[rows]).log_softmax(dim=1)
        sums.append(-(target_MK * log_probabilities_MK).sum())
    return torch.stack(sums).sum() / len(logits_NK)


def gradient(grad: Tensor, logits_NK: Tensor, z_NC: Tensor, codebook_KC: Tensor, temperature: float) -> Tensor:
    """d loss / d logits = (softmax(logits) - target) / N, times the loss's own gradient: [N, K] in logits' dtype.

    The targets are computed again: keeping them would take N x K entries from the forward to the backward pass.
    """
    out_NK = torch.empty_like(logits_NK)
    for rows in _chunks(logits_NK):
        target_MK = soft_labels(z_NC[rows], codebook_KC, temperature)
        out_NK[rows] = (_wide(logits_NK[rows]).softmax(dim=1) - target_MK) * (grad / len(logits_NK))
    return out_NK


def _chunks(logits_NK: Tensor) -> Iterator[slice]:
    N, K = logits_NK.shape
    step = max(1, CHUNK_ENTRIES // K)
    return (slice(start, start + step) for start in range(0, N, step))


def _wide(x: Tensor) -> Tensor:
    """In fp32 at least: a mean over thousands of codes and rows is not for bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
