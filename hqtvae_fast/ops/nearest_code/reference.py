"""Nearest code by brute force: the definition that kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ENTRIES = 1 << 24  # distances held at once, so that no N x K matrix is made for large N


def squared_distances(z_NC: Tensor, codebook_KC: Tensor) -> Tensor:
    """|z - e|^2 of every pair, [N, K], as |z|^2 + |e|^2 - 2ze in the inputs' precision."""
    z_norm = z_NC.square().sum(dim=1, keepdim=True)
    return torch.addmm(z_norm + codebook_KC.square().sum(dim=1), z_NC, codebook_KC.T, alpha=-2)


def nearest_code(z_NC: Tensor, codebook_KC: Tensor) -> Tensor:
    """argmin_k |z_n - e_k|^2, ties to the lowest index: [N] int64."""
    rows = max(1, CHUNK_ENTRIES // codebook_KC.shape[0])
    parts = [squared_distances(part, codebook_KC).argmin(dim=1) for part in z_NC.split(rows)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=z_NC.device)
