"""Our own kernels for channels-last maps on a CPU (csrc/cpu/group_norm_silu.cpp), fp32 and bf16."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.cpu_library import library, load
from hqtvae_fast.ops.cpu_maps import in_large_pages

SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
CHANNELS = 2048  # at most
SPLITS = 64
"""Runs of rows that an image is cut into: threads are given runs, so that one image keeps a few dozen busy."""


def why_not(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
) -> str | None:
    """None where the kernels can take this map, else the reason."""
    if shift is not None:
        return "expected no shift: convolutions on a CPU add their bias themselves"
    if x.device.type != "cpu" or x.dtype not in SUFFIXES:
        return f"expected fp32 or bf16 on the CPU; got {x.dtype} on {x.device}"
    if weight.dtype is torch.float64:
        return "expected weights of at most fp32; got fp64"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return f"expected channels-last memory; got strides {x.stride()} for {list(x.shape)}"
    if x.shape[1] > CHANNELS:
        return f"expected at most {CHANNELS} channels; got {x.shape[1]}"
    return load()[1] or None


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`reference.forward`; there is no ``shift``."""
    B, C, HW, splits = _sizes(x)
    y = in_large_pages(torch.empty_like(x))
    total = x.new_empty(0) if residual is None else in_large_pages(torch.empty_like(x))
    mean, rstd = (x.new_empty(B, num_groups, dtype=torch.float32) for _ in range(2))
    runs = torch.empty(B, splits, 2, num_groups, dtype=torch.float64)
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    getattr(library(), f"hqtvae_group_norm_silu_{SUFFIXES[x.dtype]}")(
        *(x.data_ptr(), residual.data_ptr() if residual is not None else None),
        total.data_ptr() if residual is not None else None,
        *(weight.data_ptr(), bias.data_ptr(), y.data_ptr(), mean.data_ptr(), rstd.data_ptr(), runs.data_ptr()),
        *(B, HW, C, num_groups, splits, eps, silu),
    )
    return y, total, mean, rstd


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`reference.backward`; ``dy`` in x's dtype, channels-last."""
    B, C, HW, splits = _sizes(x)
    dx = torch.empty_like(x)
    runs, sums = (torch.empty(*shape, dtype=torch.float32) for shape in ((B, splits, 2, C), (B, 2, C)))
    wide_weight, wide_bias = weight.float().contiguous(), bias.float().contiguous()
    getattr(library(), f"hqtvae_group_norm_silu_backward_{SUFFIXES[x.dtype]}")(
        *(dy.data_ptr(), x.data_ptr(), wide_weight.data_ptr(), wide_bias.data_ptr(), mean.data_ptr(), rstd.data_ptr()),
        *(dx.data_ptr(), runs.data_ptr(), sums.data_ptr()),
        *(B, HW, C, mean.shape[1], splits, silu),
    )
    dbias, dweight = sums[:, 0].sum(dim=0), sums[:, 1].sum(dim=0)
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    B, C, H, W = x.shape
    return B, C, H * W, min(SPLITS, H * W)
