"""3x3 convolutions of the autoencoder, by weights that are made of their own where that is faster."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hqtvae_fast.ops.kernels.conv3x3 import EIGHT_BITS, WINOGRAD, way
from hqtvae_fast.ops.kernels.winograd_conv import transform_weights, winograd_conv
from hqtvae_fast.ops.made import Made


class Conv(nn.Conv2d):
    """A convolution that may leave its bias to who reads its output."""

    def forward(self, x: Tensor, *, with_bias: bool = True) -> Tensor:
        return super().forward(x) if with_bias else self._conv_forward(x, self.weight, None)


class Remade(nn.Module):
    """A convolution for inference by other weights that are made of its own when they are first needed and never saved:
    on a CPU four times as many for a kernel with a quarter of the multiplications, in fp32; or 8-bit ones, on either
    device, where :func:`hqtvae_fast.model.calibration.calibrate` has set ``span`` and a plan says so."""

    span: Tensor | None = None
    """The least and the largest number of its input that 8 bits keep, fp32 [2] on the CPU."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._transformed: Made[Tensor] = Made()
        self._int8: Made[Any] = Made()
        self._fp8: Made[Any] = Made()

    def remade(self, x: Tensor, weight: Tensor, bias: Tensor, *, doubled: bool = False) -> Tensor | None:
        """The convolution; None where it is to be the plain one."""
        chosen = way(x, weight, bias, self.span, doubled=doubled)
        if chosen == WINOGRAD:
            transformed = self._transformed.of(lambda: transform_weights(weight), weight)
            return winograd_conv(x, transformed, bias, doubled=doubled)
        eight = self._made_in(chosen, weight, bias, doubled)
        return None if eight is None else eight(x)

    def eight_bits(self, like: Tensor, weight: Tensor, bias: Tensor, *, doubled: bool = False) -> Any:
        """What computes it in 8 bits, if a plan says so of a map like this one, and None else: so that who makes the
        map can round it on the way (``rounding``)."""
        if self.span is None:
            return None
        return self._made_in(way(like, weight, bias, self.span, doubled=doubled), weight, bias, doubled)

    def _made_in(self, chosen: str, weight: Tensor, bias: Tensor, doubled: bool) -> Any:
        kind, span = EIGHT_BITS.get(chosen), self.span
        if kind is None or span is None:
            return None
        made = self._fp8 if kind.form == "fp8" else self._int8
        own = made.of(lambda: kind.make(weight, bias, doubled, span), weight, bias, span, lasting=True)
        return own if kind.tile is None else own.by(kind.tile)

    def look(self) -> None:
        """Make again what captured graphs read and is no longer right."""
        self._int8.again()
        self._fp8.again()

    def drop(self) -> None:
        for made in (self._transformed, self._int8, self._fp8):
            made.drop()

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        self.drop()  # to another device or dtype
        return super()._apply(*arguments, **options)

    def train(self, mode: bool = True) -> Any:
        if mode:  # the weights are about to change, and with them what later layers read
            self.drop()
            self.span = None
        return super().train(mode)


class Conv3x3(Remade, Conv):
    """3x3 convolution, padded by 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, *, with_bias: bool = True) -> Tensor:
        weight = self._own_weight
        if with_bias and weight is not None and self.bias is not None:
            y = self.remade(x, weight, self.bias)
            if y is not None:
                return y
        return super().forward(x, with_bias=with_bias)

    def in_eight_bits(self, like: Tensor) -> Any:
        """:meth:`eight_bits` of its own weights."""
        weight = self._own_weight
        return None if weight is None or self.bias is None else self.eight_bits(like, weight, self.bias)

    @property
    def _own_weight(self) -> Tensor | None:
        return self._parameters.get("weight")  # None: a parametrization's, computed anew each time
