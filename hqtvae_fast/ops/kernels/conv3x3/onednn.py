"""oneDNN's convolution of 8-bit numbers (:mod:`.int8`), where the processor multiplies them without saturating.

It takes uint8 maps with a zero, in whatever layout, and gives fp32 or bf16 in channels-last memory, scales and bias
taken along. Without VNNI it adds pairs of products in 16 bits, which saturate, and is slower than fp32's products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.hardware import cpu_features
from hqtvae_fast.ops.kernels.quantized_conv.formats import quantize_weights
from hqtvae_fast.ops.kernels.round_map import Rounding, round_map
from hqtvae_fast.ops.kernels.upsample_conv.reference import interleave

DTYPES = (torch.float32, torch.bfloat16)


def why_not(x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, span: Tensor | None) -> str | None:
    """None where it can take ``x`` and is right, else the reason."""
    if span is None:
        return "expected a layer that is calibrated: `hqtvae convert --quantize int8`"
    if x.device.type != "cpu" or x.dtype not in DTYPES:
        return f"expected fp32 or bf16 on the CPU; got {x.dtype} on {x.device}"
    return why_not_here()


def why_not_here() -> str | None:
    """None where this processor can, else the reason."""
    if "AVX512-VNNI" not in cpu_features():
        return "this processor has no AVX512-VNNI: products of 8 bits would saturate"
    return None if torch.backends.mkldnn.is_available() else "torch was built without oneDNN"


class Int8Conv:
    """Weights in 8 bits, laid out for oneDNN, for maps in ``span``."""

    def __init__(self, weight: Tensor, bias: Tensor, doubled: bool, span: Tensor) -> None:
        self.doubled, self.dtype, self.rounding = doubled, weight.dtype, Rounding.of(span, "uint8")
        numbers, self.scales = quantize_weights(weight.detach(), torch.int8)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
        self.bias = bias.detach().float().repeat(len(weight) // len(bias))
        where = (self.rounding.scale, self.rounding.zero, [1, 1], [1, 1], [1, 1], 1, None)
        self.packed = torch.ops.onednn.qconv_prepack(numbers.contiguous(), self.scales, *where)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, N, H, W], or twice as large, in the weight's dtype and channels-last memory; ``x`` in
        8 bits, or to be."""
        return self.multiply(x if x.dtype is torch.uint8 else self.round(x))

    def round(self, x: Tensor, residual: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """A map, or a sum, in 8 bits."""
        return round_map(x, self.rounding, residual=residual, shift=shift)

    def multiply(self, numbers: Tensor) -> Tensor:
        known = (self.rounding.scale, self.rounding.zero)
        given = (numbers, *known, self.packed, self.scales, self.zeros, self.bias)
        how: tuple[Any, ...] = ([1, 1], [1, 1], [1, 1], 1, 1.0, 0, self.dtype, "none", [], "")
        y = torch.ops.onednn.qconv_pointwise(*given, *how)
        if not self.doubled:
            return y
        (B, _, H, W), N = numbers.shape, len(self.bias) // 4
        memory = torch.channels_last
        out = torch.empty(B, N, 2 * H, 2 * W, dtype=self.dtype, device=y.device, memory_format=memory)
        return interleave(y, out)


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, span: Tensor, made: Int8Conv | None = None
) -> Tensor:
    """``made``: the weights as they are read, if they are there."""
    return (made or Int8Conv(weight, bias, doubled, span))(x)
