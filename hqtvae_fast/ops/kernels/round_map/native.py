"""Our own kernel for maps on a CPU (csrc/cpu/round_map.cpp): uint8, of fp32 and bf16."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.cpu_library import buffer, library, load
from hqtvae_fast.ops.cpu_maps import in_large_pages

SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def why_not(
    x: Tensor, residual: Tensor | None, shift: Tensor | None, form: str, scale: float = 1.0, zero: int = 0
) -> str | None:
    """None where the kernel can take this map, else the reason."""
    if form != "uint8":
        return f"expected uint8 on a CPU; got {form}"
    if shift is not None:
        return "expected no shift: convolutions on a CPU add their bias themselves"
    if x.device.type != "cpu" or x.dtype not in SUFFIXES:
        return f"expected fp32 or bf16 on the CPU; got {x.dtype} on {x.device}"
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        return f"expected a map without gaps; got strides {x.stride()} for {list(x.shape)}"
    return load()[1] or None


def round_map(x: Tensor, residual: Tensor | None, shift: Tensor | None, form: str, scale: float, zero: int) -> Tensor:
    """As :func:`reference.round_map`; there is no ``shift``."""
    count, numbers = x.numel(), in_large_pages(torch.empty_like(x, dtype=torch.uint8))
    maps = [None if each is None else buffer(each, x.dtype, count) for each in (x, residual)]
    run = getattr(library(), f"hqtvae_round_map_{SUFFIXES[x.dtype]}")
    run(*maps, buffer(numbers, torch.uint8, count), count, 1.0 / scale, zero)
    return numbers
