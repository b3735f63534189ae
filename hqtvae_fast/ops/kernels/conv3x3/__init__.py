"""A 3x3 convolution of the decoder on a CPU, after nearest-neighbour doubling or not: who is to compute it."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.modes import is_traced
from hqtvae_fast.ops.kernels.conv3x3 import native, onednn, reference
from hqtvae_fast.ops.kernels.conv3x3.onednn import Int8Conv

WINOGRAD, INT8, PLAIN = "native", "onednn/int8", "reference"
BACKENDS = (
    Backend(WINOGRAD, native.conv3x3, native.why_not),
    Backend(PLAIN, reference.conv3x3),
    Backend(INT8, onednn.conv3x3, onednn.why_not, only_by_name=True),
)
"""Functions of x [B, C, H, W], weight ([N, C, 3, 3], folded [4 * N, C, 2, 2] if doubled), bias [N], whether x is
doubled, and the span of x's numbers that the layer is calibrated to, fp32 [2], or None. A model asks :func:`way` and
keeps what is made of the weights itself."""


def way(x: Tensor, weight: Tensor, bias: Tensor, span: Tensor | None = None, *, doubled: bool = False) -> str:
    """Who is to take it, by whoever asks (environment, plan), else: :func:`hqtvae_fast.ops.winograd_conv` wherever it
    has clearly less to multiply. 8 bits where a plan or the environment says so, for they are not the same numbers.
    Plain where a gradient, a cast by autocast or a compiler would have to follow."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or is_traced() or torch.is_autocast_enabled("cpu"):
        return PLAIN
    inputs = (x, weight, bias, doubled, span)
    if native.why_not(*inputs) is not None and onednn.why_not(*inputs) is not None:
        return PLAIN
    return choose("conv3x3", BACKENDS, *inputs).backend.name


def has_int8() -> bool:
    """Whether this processor takes calibrated layers in 8 bits."""
    return onednn.why_not_here() is None


__all__ = ["INT8", "PLAIN", "WINOGRAD", "Int8Conv", "has_int8", "way"]
