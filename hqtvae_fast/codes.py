"""Codes, from wherever they come: widened, then compared with the model's levels. The one place that checks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast import modes
from hqtvae_fast.arguments import integers
from hqtvae_fast.config import VAEConfig


def is_traced(values: Tensor) -> bool:
    """Whether this runs to become a program or a CUDA graph, so that there are no values to look at yet."""
    return modes.is_traced() or (values.is_cuda and torch.cuda.is_current_stream_capturing())


def can_look(values: Tensor) -> bool:
    """Whether values may be looked at: on a GPU that would hold up the host."""
    return values.device.type == "cpu" and not is_traced(values)


def check_range(name: str, codes: Tensor, size: int) -> None:
    """ValueError unless all are from 0 to ``size`` - 1; not looked at where that would wait (:func:`can_look`)."""
    if codes.numel() == 0 or not can_look(codes):
        return
    low, high = (int(bound) for bound in codes.aminmax())
    if low < 0 or high >= size:
        raise ValueError(f"{name}: expected codes from 0 to {size - 1}; got {low} to {high}")


def read_level(name: str, value: Any, side: int, size: int) -> Tensor:
    """Codes of one level as int64 [B, side, side], on their device, of integers of any width in a tensor, an array or
    lists. ValueError on another shape or dtype, or a code out of range (looked at on the CPU only)."""
    codes = integers(name, value, f"integers [B, {side}, {side}]")
    if codes.ndim != 3 or tuple(codes.shape[1:]) != (side, side):
        raise ValueError(f"{name}: expected [B, {side}, {side}]; got {list(codes.shape)}")
    check_range(name, codes, size)
    return codes


def read_levels(codes: Sequence[Any], config: VAEConfig, file: str | None = None) -> tuple[list[Tensor | None], int]:
    """Codes of all levels as :func:`read_level` gives them, top first, and how many pictures they are of.

    None leaves a level out. ``file``: where they come from, for messages. ValueError where their number, their numbers
    of pictures or a level is not the model's.
    """
    levels, what = config.num_levels, file or "codes"
    if isinstance(codes, Tensor) or len(codes) != levels:
        got = f"a tensor {list(codes.shape)}" if isinstance(codes, Tensor) else len(codes)
        raise ValueError(f"{what}: expected {levels} levels (None leaves one out); got {got}")
    names = [f"codes of level {index}" if file is None else f"{file}: level_{index}" for index in range(levels)]
    pairs = zip(names, codes, config.level_sides, config.codebook_sizes, strict=True)
    found = [None if level is None else read_level(name, level, side, size) for name, level, side, size in pairs]
    counts = {len(level) for level in found if level is not None}
    if len(counts) != 1:
        raise ValueError(f"{what}: expected at least one level and one batch size; got {sorted(counts)}")
    return found, counts.pop()
