"""The convolution in 8 bits, in whole numbers: the definition, in plain torch.

A map is rounded with one scale that is known beforehand, from the span of numbers that the layer was calibrated to;
weights with one an output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.quantized_conv.formats import quantize_weights
from hqtvae_fast.ops.kernels.upsample_conv.reference import interleave

LEVELS = 255
TINY = torch.finfo(torch.float32).tiny


def scale_and_zero(span: Tensor) -> tuple[float, int]:
    """Of numbers u, 0 to 255, that stand for scale * (u - zero): ``span`` fp32 [2], the least and the largest number
    that are not cut off, or 0 where that is beyond. The scale is one of fp32."""
    low, high = min(0.0, float(span[0])), max(0.0, float(span[1]))
    scale = float(torch.tensor(max((high - low) / LEVELS, TINY), dtype=torch.float32))
    return scale, min(LEVELS, round(-low / scale))


def round_map(x: Tensor, scale: float, zero: int) -> Tensor:
    """uint8, in the layout of ``x``: round(x / scale) + zero, what lies beyond cut off; NaN is ``zero``'s number."""
    numbers = (x.float() * (1.0 / scale)).round_().add_(zero)
    return numbers.nan_to_num_(zero, LEVELS, 0).clamp_(0, LEVELS).to(torch.uint8)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, span: Tensor) -> Tensor:
    """fp64 holds each sum exactly; then one product with both scales, and the bias, and one rounding to x's dtype."""
    scale, zero = scale_and_zero(span)
    numbers, scales = quantize_weights(weight, torch.int8)
    moved = round_map(x, scale, zero).double() - zero
    many = len(weight) // len(bias)
    y = F.conv2d(moved, numbers.double(), padding=1) * (scale * scales.double())[:, None, None]
    y = (y + bias.double().repeat(many)[:, None, None]).to(x.dtype)
    if doubled:
        B, _, H, W = x.shape
        y = interleave(y, y.new_empty(B, len(bias), 2 * H, 2 * W))
    return y.contiguous(memory_format=torch.channels_last)
