"""Nearest code by brute force in float64: the definition that kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_VALUES = 1 << 24  # differences held at once


def distances(z_MC: Tensor, codes_MC: Tensor) -> Tensor:
    """|z - e|^2 of M pairs (or of anything that broadcasts to them), summed over the last axis in float64."""
    return (z_MC.double() - codes_MC.double()).square_().sum(dim=-1)


def nearest_code(z_NC: Tensor, codebook_KC: Tensor) -> Tensor:
    """argmin_k |z_n - e_k|^2, ties to the lowest index: [N] int64. A row with NaN gives 0."""
    rows = max(1, CHUNK_VALUES // max(1, codebook_KC.numel()))
    parts = [distances(part[:, None], codebook_KC[None]).argmin(dim=1) for part in z_NC.split(rows)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=z_NC.device)
