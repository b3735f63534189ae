"""Folded upsampling in plain torch: two convolutions and four strided copies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample_conv(x: Tensor, folded: Tensor, bias: Tensor, weight: Tensor | None = None) -> Tensor:
    H, W = x.shape[2:]
    out = empty_doubled(x, folded)
    # A convolution for each parity of the row: the two phases of one fit a cache that all four would overflow (at
    # 128 channels and 128x128 pixels oneDNN is a fifth faster so).
    for row, weight in enumerate(folded.chunk(2)):
        phases = F.conv2d(x, weight, bias.repeat(2), padding=1)  # [B, 2C, H+1, W+1]
        for column, phase in enumerate(phases.chunk(2, dim=1)):
            out[:, :, row::2, column::2] = phase[:, :, row : row + H, column : column + W]
        del phases, phase  # before the other half's
    return out


def interleave(phases: Tensor, out: Tensor) -> Tensor:
    """[B, 4N, H+1, W+1] or larger, phases (row, column) row by row, into ``out`` [B, N, 2H, 2W]."""
    H, W = out.shape[2] // 2, out.shape[3] // 2
    for index, phase in enumerate(phases.chunk(4, dim=1)):
        p, q = divmod(index, 2)
        out[:, :, p::2, q::2] = phase[:, :, p : p + H, q : q + W]
    return out


def empty_doubled(x: Tensor, folded: Tensor) -> Tensor:
    """[B, N, 2H, 2W] in channels-last memory, unset."""
    B, _, H, W = x.shape
    shape = (B, len(folded) // 4, 2 * H, 2 * W)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
