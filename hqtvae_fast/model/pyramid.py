"""The two layouts of a code pyramid.

*Maps*: a tuple of [B, h, w] integer tensors, top level first, as stage 1 makes and reads them. *Local pyramids*: one
[B, T, n] tensor, T top positions row by row, and for each its top code, then its four codes of the next level row by
row in their 2x2 window, then its sixteen of the level after in their 4x4 window. Stage 2 works on local pyramids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hqtvae_fast.config import WINDOW


def window_side(level: int) -> int:
    """Side of a top position's window at ``level``: 1, 2, 4."""
    return WINDOW**level


def split_windows(map_BHW: Tensor, side: int, level: int) -> Tensor:
    """[B, side*w, side*w, ...] map of one level -> [B, side*side, w*w, ...], w = 2^level."""
    w = window_side(level)
    batch, rest = map_BHW.shape[0], map_BHW.shape[3:]
    tiles = map_BHW.reshape(batch, side, w, side, w, *rest).transpose(2, 3)
    return tiles.reshape(batch, side * side, w * w, *rest)


def join_windows(local_BTW: Tensor, side: int, level: int) -> Tensor:
    """The inverse of :func:`split_windows`: [B, side*side, w*w, ...] -> [B, side*w, side*w, ...]."""
    w = window_side(level)
    batch, rest = local_BTW.shape[0], local_BTW.shape[3:]
    tiles = local_BTW.reshape(batch, side, side, w, w, *rest).transpose(2, 3)
    return tiles.reshape(batch, side * w, side * w, *rest)


def to_local(maps: Sequence[Tensor], side: int) -> Tensor:
    """Code maps, each [B, h, w] or flat [B, h*w], to local pyramids [B, T, n]. A wrong size raises ValueError."""
    parts = []
    for level, codes in enumerate(maps):
        h = side * window_side(level)
        if codes.shape[1:] not in ((h, h), (h * h,)):
            raise ValueError(f"codes of level {level}: expected [B, {h}, {h}] or [B, {h * h}]; got {list(codes.shape)}")
        parts.append(split_windows(codes.reshape(-1, h, h), side, level))
    return torch.cat(parts, dim=2)


def to_maps(local_BTN: Tensor, side: int, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """Local pyramids [B, T, n] to code maps, top first, each [B, h, w]."""
    parts = local_BTN.split(list(widths), dim=2)
    return tuple(join_windows(part, side, level) for level, part in enumerate(parts))


def scramble_middle(local_BTN: Tensor, middle: Tensor, side: int) -> Tensor:
    """Local pyramids whose middle codes are read as the released ``top2mid2bot`` does: the map taken as [4l, l]."""
    strips_BTW = middle.reshape(-1, side, WINDOW**2, side).transpose(2, 3).reshape(-1, side * side, WINDOW**2)
    return torch.cat([local_BTN[:, :, :1], strips_BTW, local_BTN[:, :, 1 + WINDOW**2 :]], dim=2)


def parents(level: int) -> list[int]:
    """For each code in a window of ``level``, row by row, the index of its parent in the window of ``level - 1``."""
    w, up = window_side(level), window_side(level - 1)
    return [(row // WINDOW) * up + column // WINDOW for row in range(w) for column in range(w)]
