"""Our own kernels for channels-last maps on a CPU (csrc/cpu/group_norm_silu.cpp), fp32 and bf16."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.cpu_library import buffer, library, load
from hqtvae_fast.ops.cpu_maps import in_large_pages

SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
CHANNELS = 2048  # at most
SPLITS = 64
"""Runs of rows that an image is cut into, at most: threads are given runs, so that one image keeps a few dozen busy."""
RUN = 8192
"""Values that a run has at least: joining the statistics of many short runs costs more than taking them. Maps of 64x8x8
took 280 us for 8 images in 64 runs each, and take 48 in one; torch takes 46 (bf16, one thread, EPYC)."""


def why_not(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
    form: str | None = None,
    scale: float = 1.0,
    zero: int = 0,
) -> str | None:
    """None where the kernels can take this map, else the reason."""
    if shift is not None:
        return "expected no shift: convolutions on a CPU add their bias themselves"
    if form not in (None, "uint8"):
        return f"expected uint8 on a CPU; got {form}"
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
    form: str | None = None,
    scale: float = 1.0,
    zero: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`reference.forward`; there is no ``shift``."""
    B, C, HW, splits = _sizes(x)
    y = in_large_pages(torch.empty_like(x, dtype=x.dtype if form is None else torch.uint8))
    total = x.new_empty(0) if residual is None else in_large_pages(torch.empty_like(x))
    mean, rstd = (x.new_empty(B, num_groups, dtype=torch.float32) for _ in range(2))
    runs = torch.empty(B, splits, 2, num_groups, dtype=torch.float64, device="cpu")
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    added = (None, None) if residual is None else (residual, total)
    maps = [None if each is None else buffer(each, x.dtype, B * C * HW) for each in (x, *added)]
    rounds: tuple[str, tuple[float, ...]] = ("", ()) if form is None else ("rounded_", (1.0 / scale, zero))
    getattr(library(), f"hqtvae_group_norm_silu_{rounds[0]}{SUFFIXES[x.dtype]}")(
        *maps,
        *(buffer(x, torch.float32, C) for x in (weight, bias)),
        buffer(y, y.dtype, B * C * HW),
        *(buffer(x, torch.float32, B * num_groups) for x in (mean, rstd)),
        buffer(runs, torch.float64, B * splits * 2 * num_groups),
        *(B, HW, C, num_groups, splits, eps, silu),
        *rounds[1],
    )
    return y, total, mean, rstd


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`reference.backward`; ``dy`` in x's dtype, channels-last."""
    B, C, HW, splits = _sizes(x)
    dx = torch.empty_like(x)
    runs, sums = (torch.empty(*shape, dtype=torch.float32, device="cpu") for shape in ((B, splits, 2, C), (B, 2, C)))
    wide_weight, wide_bias = weight.float().contiguous(), bias.float().contiguous()
    getattr(library(), f"hqtvae_group_norm_silu_backward_{SUFFIXES[x.dtype]}")(
        *(buffer(each, x.dtype, B * C * HW) for each in (dy, x)),
        *(buffer(each, torch.float32, C) for each in (wide_weight, wide_bias)),
        *(buffer(each, torch.float32, mean.numel()) for each in (mean, rstd)),
        buffer(dx, x.dtype, B * C * HW),
        *(buffer(runs, torch.float32, B * splits * 2 * C), buffer(sums, torch.float32, B * 2 * C)),
        *(B, HW, C, mean.shape[1], splits, silu),
    )
    dbias, dweight = sums[:, 0].sum(dim=0), sums[:, 1].sum(dim=0)
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    B, C, H, W = x.shape
    return B, C, H * W, runs_of(x)


def runs_of(x: Tensor) -> int:
    """How many runs of rows each image of x [B, C, H, W] is cut into: by its size alone, not by batch or threads, so
    that neither changes its sums."""
    return max(1, min(SPLITS, x.shape[1:].numel() // RUN))
