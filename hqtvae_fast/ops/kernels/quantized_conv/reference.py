"""Convolution of 8-bit numbers in plain torch, with the sums that tensor cores are documented to take."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.quantized_conv.formats import borders
from hqtvae_fast.ops.kernels.upsample_conv.reference import interleave


def quantized_conv(
    x: Tensor,
    weight: Tensor,
    x_scales: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    offsets: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    blocks = len(x_scales)
    # fp64 holds every sum that int32 could, exactly; fp8 numbers and their products are exact in fp32.
    wide = torch.float64 if x.dtype is torch.int8 else torch.float32
    total: Tensor | float = 0.0
    for x_part, weight_part, scale in zip(x.chunk(blocks, 1), weight.chunk(blocks, 1), x_scales, strict=True):
        sums = F.conv2d(x_part.to(wide), weight_part.to(wide), padding=1)
        total = total + scale * (sums if offsets is None else less(sums, offsets, x)).float()
    scaled = weight_scales[:, None, None] * total
    out = empty_output(x, weight, bias, dtype)
    if len(weight) == len(bias):
        return out.copy_(scaled + bias[:, None, None])
    return interleave((scaled + bias.repeat(4)[:, None, None]).to(dtype), out)


def less(sums: Tensor, offsets: Tensor, x: Tensor) -> Tensor:
    """What the map's zero has added, taken off, exactly: of [B, rows, H, W], or of the four phases of each pixel, which
    lie a row and a column further on."""
    H, W = x.shape[2:]
    own = offsets[borders(H, W, x.device)].permute(2, 0, 1).to(sums)
    if sums.shape[2:] == x.shape[2:]:
        return sums - own
    for phase, (part, off) in enumerate(zip(sums.chunk(4, 1), own.chunk(4), strict=True)):
        p, q = divmod(phase, 2)
        part[:, :, p : p + H, q : q + W] -= off
    return sums


def empty_output(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, N, H, W], twice as large for folded weights, in channels-last memory, unset."""
    B, _, H, W = x.shape
    scale = 1 if len(weight) == len(bias) else 2
    shape = (B, len(bias), scale * H, scale * W)
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
