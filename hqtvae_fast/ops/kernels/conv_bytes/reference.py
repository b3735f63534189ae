"""The decoder's last convolution and bytes of its pixels, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def conv_bytes(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return to_bytes(F.conv2d(x, weight, bias, padding=1))


def to_bytes(images: Tensor) -> Tensor:
    """[B, N, H, W], nominally in [-1, 1], as uint8 [B, H, W, N]: to the nearest of 256 levels, ties to even."""
    unit = images.to(torch.promote_types(images.dtype, torch.float32)) * 0.5 + 0.5
    return (unit.clamp_(0, 1) * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def empty_bytes(x: Tensor, weight: Tensor) -> Tensor:
    """uint8 [B, H, W, N], unset."""
    B, _, H, W = x.shape
    return torch.empty((B, H, W, len(weight)), dtype=torch.uint8, device=x.device)
