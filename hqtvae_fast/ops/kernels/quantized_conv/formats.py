"""Maps and weights in 8 bits: int8 and fp8 (e4m3), and their scales."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Of the numbers of a format; int8's -128 is left out, so that both signs are alike."""


def quantize(x: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] as the nearest numbers of ``dtype`` times ``scales``, one for each C / len(scales) neighbouring
    channels; what lies beyond the largest number becomes it. Ties go to even."""
    limit, size = LARGEST[dtype], x.shape[1] // len(scales)
    scaled = x.float() / scales.repeat_interleave(size)[:, None, None]
    scaled = scaled.clamp_(-limit, limit)
    return (scaled.round_() if dtype is torch.int8 else scaled).to(dtype)


def quantize_weights(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[N, C, t, t] as numbers of ``dtype`` in channels-last memory, and a scale [N] for each output channel: its
    largest weight becomes the format's largest number."""
    scales = weight.float().abs().amax(dim=(1, 2, 3)).clamp_(min=1e-12) / LARGEST[dtype]
    numbers = weight.float() / scales[:, None, None, None]
    numbers = numbers.round() if dtype is torch.int8 else numbers
    return numbers.to(dtype).contiguous(memory_format=torch.channels_last), scales
