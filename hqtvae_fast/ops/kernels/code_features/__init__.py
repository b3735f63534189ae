"""The decoder's input straight from codes: rows of tables, gathered and added (eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.code_features import reference, triton
from hqtvae_fast.ops.operator import dispatched


def code_features(
    codes: Sequence[Tensor], tables: Sequence[Tensor], base: Tensor, *, backend: str | None = None
) -> Tensor:
    """sum over levels of tables[level][code above the pixel, the pixel's place in that code's window] + base[place].

    What lies between codes and the decoder, lookups, resampling and a 1x1 convolution, is linear in the embeddings and
    keeps windows apart, so that all of it fits tables. ``codes``: int64 [B, h, w] of each level that is not left out;
    ``tables``: for each of them [K, f*f, C], floating point, the windows of f x f pixels row by row; ``base`` [F*F, C],
    what is there without any code, for windows of F x F pixels. Returns [B, C, H, W] in channels-last memory, with
    H = h*f and W = w*f at every level, multiples of F; sums are taken in fp32 at least. For inference: no gradient.

    ``backend``: "triton" (CUDA, up to three levels) or "reference" (anywhere). Raises ValueError on other shapes or
    dtypes, and BackendError where the backend asked for cannot run. Codes outside [0, K) are the caller's to refuse.
    """
    if not codes or len(codes) != len(tables):
        raise ValueError(f"expected a table for each of one level or more; got {len(codes)} and {len(tables)}")
    sides = [window_side(len(base)), *(window_side(table.shape[1]) for table in tables)]
    maps = {(len(level), level.shape[1] * f, level.shape[2] * f) for level, f in zip(codes, sides[1:], strict=True)}
    if len(maps) != 1:
        raise ValueError(f"codes: expected levels of one map [B, H, W]; got {sorted(maps)}")
    if any(size % sides[0] for size in next(iter(maps))[1:]):
        raise ValueError(f"base: expected windows that divide {sorted(maps)}; got {sides[0]}")
    if any(table.shape[2:] != base.shape[1:] or table.dtype != base.dtype for table in tables):
        raise ValueError(f"tables: expected {base.dtype} [K, f*f, {base.shape[1]}] as base; got {_shapes(tables)}")
    if not base.is_floating_point() or any(level.dtype is not torch.int64 for level in codes):
        raise ValueError(f"expected int64 codes and floating tables; got {_shapes(codes)} and {base.dtype}")
    inputs = (list(codes), list(tables), base)
    choice = choose("code_features", BACKENDS, *inputs, backend=backend)
    return torch.ops.hqtvae_fast.code_features(*inputs, choice.backend.name)


def window_side(pixels: int) -> int:
    """The side of a square window; ValueError if there is none."""
    side = math.isqrt(pixels)
    if side == 0 or side * side != pixels:
        raise ValueError(f"windows: expected a square number of pixels; got {pixels}")
    return side


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in tensors)


BACKENDS = (
    *with_tiles("triton", triton.code_features, triton.why_not, triton.TILES),
    Backend("reference", reference.code_features),
)


@dispatched("code_features", BACKENDS, mutates_args=())
def _code_features(codes: Sequence[Tensor], tables: Sequence[Tensor], base: Tensor, backend: str) -> Tensor:
    return reference.empty_features(codes, tables, base)


__all__ = ["code_features", "window_side"]
