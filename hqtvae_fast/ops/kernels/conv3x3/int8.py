"""The convolution in 8 bits, in whole numbers: the definition, in plain torch.

A map is rounded with one scale that is known beforehand, from the span of numbers that the layer was calibrated to;
weights with one an output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.quantized_conv.formats import quantize_weights
from hqtvae_fast.ops.kernels.round_map import Rounding, round_map
from hqtvae_fast.ops.kernels.upsample_conv.reference import interleave


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, span: Tensor) -> Tensor:
    """fp64 holds each sum exactly; then one product with both scales, and the bias, and one rounding to x's dtype."""
    rounding = Rounding.of(span, "uint8")
    numbers, scales = quantize_weights(weight, torch.int8)
    moved = round_map(x, rounding, backend="reference").double() - rounding.zero
    many = len(weight) // len(bias)
    y = F.conv2d(moved, numbers.double(), padding=1) * (rounding.scale * scales.double())[:, None, None]
    y = (y + bias.double().repeat(many)[:, None, None]).to(x.dtype)
    if doubled:
        B, _, H, W = x.shape
        y = interleave(y, y.new_empty(B, len(bias), 2 * H, 2 * W))
    return y.contiguous(memory_format=torch.channels_last)
