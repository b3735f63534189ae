"""A convolution in 8 bits on a GPU: rounding, where the norm before has not done so, and
:func:`hqtvae_fast.ops.quantized_conv`.

int8: what :mod:`.int8` defines, with sums and zero exact; two fp32 products and a sum stand for its one product and
sum. fp8 (e4m3): numbers alike on both sides of zero, of maps with one scale and of weights with one an output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.kernels.quantized_conv import quantize_weights, quantized_conv, zero_offsets
from hqtvae_fast.ops.kernels.quantized_conv.triton import FEWEST_CHANNELS, why_not_map
from hqtvae_fast.ops.kernels.round_map import FORMS, Rounding, round_map
from hqtvae_fast.ops.kernels.upsample_conv.triton import Tile


def why_not(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    doubled: bool,
    span: Tensor | None,
    made: QuantizedConv | None = None,
    *,
    form: str,
    tile: Tile | None = None,
) -> str | None:
    """None where a GPU can take ``x``, else the reason."""
    if span is None:
        return "expected a layer that is calibrated: `hqtvae convert --quantize int8` or fp8"
    reason = triton_launch.why_not(x, bias)
    if reason is None and x.shape[1] % FEWEST_CHANNELS:
        reason = f"expected multiples of {FEWEST_CHANNELS} channels; got {x.shape[1]}"
    return reason or why_not_map(x, FORMS[form].dtype, x.dtype)


@dataclass(frozen=True)
class QuantizedConv:
    """Weights in 8 bits, for maps that are rounded by ``rounding``, to outputs in ``dtype``. ``backend``: who rounds
    and multiplies, "triton", or with a tile, or "reference"; asked for by name, so that a GPU runs what was proven
    there and nothing else."""

    rounding: Rounding
    numbers: Tensor
    scales: Tensor
    x_scale: Tensor
    bias: Tensor
    offsets: Tensor | None
    dtype: torch.dtype
    backend: str = "triton"

    @staticmethod
    def of(weight: Tensor, bias: Tensor, doubled: bool, span: Tensor, *, form: str) -> QuantizedConv:
        rounding = Rounding.of(span, form)
        numbers, scales = quantize_weights(weight.detach(), FORMS[form].dtype)
        offsets = None if form == "fp8" else zero_offsets(numbers, rounding.zero)
        x_scale = torch.full((1,), rounding.scale, dtype=torch.float32, device=weight.device)
        return QuantizedConv(rounding, numbers, scales, x_scale, bias.detach().float(), offsets, weight.dtype)

    def by(self, backend: str) -> QuantizedConv:
        """The same numbers, multiplied by another backend."""
        return replace(self, backend=backend)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, N, H, W], or twice as large, in channels-last memory; ``x`` in 8 bits, or to be."""
        return self.multiply(x if x.dtype is self.numbers.dtype else self.round(x))

    def round(self, x: Tensor, residual: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """A map, or a sum, in 8 bits."""
        base = self.backend.partition("/")[0]
        return round_map(x, self.rounding, residual=residual, shift=shift, backend=base)

    def multiply(self, numbers: Tensor) -> Tensor:
        how: dict[str, Any] = {"offsets": self.offsets, "dtype": self.dtype, "backend": self.backend}
        return quantized_conv(numbers, self.numbers, self.x_scale, self.scales, self.bias, **how)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    doubled: bool,
    span: Tensor,
    made: QuantizedConv | None = None,
    *,
    form: str,
    tile: Tile | None = None,
) -> Tensor:
    """``made``: the weights as they are read, if they are there."""
    made = made or QuantizedConv.of(weight, bias, doubled, span, form=form)
    return made.by("triton" if tile is None else f"triton/{tile.rows}x{tile.columns}")(x)
