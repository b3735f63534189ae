"""A 3x3 convolution of the decoder, after nearest-neighbour doubling or not: who is to compute it, in how many bits.

On a CPU as well as on a GPU 8 bits are for layers that are calibrated, and only where a plan or the environment says
so: they are not the same numbers. Both devices compute what :mod:`.int8` defines (fp8: :mod:`.triton`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.modes import is_traced
from hqtvae_fast.ops.kernels.conv3x3 import native, onednn, reference, triton
from hqtvae_fast.ops.kernels.conv3x3.onednn import Int8Conv
from hqtvae_fast.ops.kernels.conv3x3.triton import QuantizedConv
from hqtvae_fast.ops.kernels.quantized_conv.triton import TILES

WINOGRAD, INT8, PLAIN = "native", "onednn/int8", "reference"
GPU_FORMS = ("int8", "fp8")


def _on_a_gpu(form: str) -> tuple[Backend, ...]:
    run, why_not = partial(triton.conv3x3, form=form), partial(triton.why_not, form=form)
    by_itself, *tiles = with_tiles(f"triton/{form}", run, why_not, TILES)
    return replace(by_itself, only_by_name=True), *tiles


BACKENDS = (
    Backend(WINOGRAD, native.conv3x3, native.why_not),
    Backend(PLAIN, reference.conv3x3),
    Backend(INT8, onednn.conv3x3, onednn.why_not, only_by_name=True),
    *(backend for form in GPU_FORMS for backend in _on_a_gpu(form)),
)
"""Functions of x [B, C, H, W], weight ([N, C, 3, 3], folded [4 * N, C, 2, 2] if doubled), bias [N], whether x is
doubled, and the span of x's numbers that the layer is calibrated to, fp32 [2] on the CPU, or None. A model asks
:func:`way` and keeps what is made of the weights itself.

What is timed of a GPU's 8 bits reads a map that is to be rounded, in a pass of its own, where in the model the norm
before has done so; and torch's convolution adds its bias in a pass of its own, which in the model the norm behind does.
The two are alike, and whole runs decide (:mod:`hqtvae_fast.tune.confirm`)."""


@dataclass(frozen=True)
class EightBits:
    """A backend of 8 bits: its numbers, and what makes of weight, bias, doubled and span a callable of maps, which are
    in 8 bits by its ``rounding`` or are to be. ``tile``: the backend that this one is to go by, or None."""

    form: str
    make: Callable[[Tensor, Tensor, bool, Tensor], Any]
    tile: str | None = None


def _eight_bits(name: str) -> EightBits:
    base, form, *tile = name.split("/")
    if name == INT8:
        return EightBits(form, Int8Conv)
    return EightBits(form, partial(QuantizedConv.of, form=form), "/".join((base, *tile)) if tile else None)


EIGHT_BITS = {backend.name: _eight_bits(backend.name) for backend in BACKENDS if "/" in backend.name}
"""By the backend's name."""


def way(x: Tensor, weight: Tensor, bias: Tensor, span: Tensor | None = None, *, doubled: bool = False) -> str:
    """Who is to take it, by whoever asks (environment, plan), else on a CPU :func:`hqtvae_fast.ops.winograd_conv`
    wherever it has clearly less to multiply. Plain where a gradient, a cast by autocast or a compiler would have to
    follow."""
    device = x.device.type
    if device not in ("cpu", "cuda") or torch.is_grad_enabled() or is_traced() or torch.is_autocast_enabled(device):
        return PLAIN
    inputs = (x, weight, bias, doubled, span)
    if all(why_not(*inputs) is not None for why_not in _ELSE):
        return PLAIN
    return choose("conv3x3", BACKENDS, *inputs).backend.name


_ELSE: tuple[Callable[..., str | None], ...] = (
    native.why_not,
    onednn.why_not,
    *(partial(triton.why_not, form=form) for form in GPU_FORMS),
)
"""Of what is not plain; a tile can run where its form can."""


def has_int8() -> bool:
    """Whether this processor takes calibrated layers in 8 bits."""
    return onednn.why_not_here() is None


__all__ = ["EIGHT_BITS", "INT8", "PLAIN", "WINOGRAD", "EightBits", "Int8Conv", "QuantizedConv", "has_int8", "way"]
