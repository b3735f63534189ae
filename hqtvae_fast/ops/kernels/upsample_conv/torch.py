"""Upsampling by the library's convolutions: of the small map with folded weights, or of the doubled map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.upsample_conv.reference import empty_doubled, interleave


def why_not_unfolded(x: Tensor, folded: Tensor, bias: Tensor, weight: Tensor | None = None) -> str | None:
    """None where the convolution of the doubled map can be taken, else the reason."""
    return None if weight is not None else "expected the 3x3 weights; got the folded ones alone"


def folded(x: Tensor, folded: Tensor, bias: Tensor, weight: Tensor | None = None) -> Tensor:
    """All four phases by one convolution, then four strided copies."""
    return interleave(F.conv2d(x, folded, bias.repeat(4), padding=1), empty_doubled(x, folded))


def unfolded(x: Tensor, folded: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    """9/4 of the arithmetic and a doubled map in memory, but one convolution without a copy."""
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest").contiguous(memory_format=torch.channels_last)
    return F.conv2d(doubled, weight, bias, padding=1).contiguous(memory_format=torch.channels_last)
