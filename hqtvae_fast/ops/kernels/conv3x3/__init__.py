"""A 3x3 convolution of the decoder on a CPU, after nearest-neighbour doubling or not: who is to compute it."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.modes import is_traced
from hqtvae_fast.ops.kernels.conv3x3 import native, reference

BACKENDS = (
    Backend("native", native.conv3x3, native.why_not),
    Backend("reference", reference.conv3x3),
)
"""Functions of x [B, C, H, W], weight ([N, C, 3, 3], folded [4 * N, C, 2, 2] if doubled), bias [N] and whether x is
doubled. A model asks :func:`by_winograd` and keeps the transformed weights itself."""


def by_winograd(x: Tensor, weight: Tensor, bias: Tensor, *, doubled: bool = False) -> bool:
    """Whether :func:`hqtvae_fast.ops.winograd_conv` is to take it: by whoever asks (environment, plan), else wherever
    it has clearly less to multiply. False where a gradient, a cast by autocast or a compiler would have to follow."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or is_traced() or torch.is_autocast_enabled("cpu"):
        return False
    inputs = (x, weight, bias, doubled)
    return native.why_not(*inputs) is None and choose("conv3x3", BACKENDS, *inputs).backend.name == "native"


__all__ = ["by_winograd"]
