"""Residual quantization over a pyramid in one go (eq. 2-3), for resamplers without weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.hierarchical_quantize import fused, reference

Resampler = Literal["pixel_shuffle", "average"]

BACKENDS = (
    Backend("triton", fused.quantize, fused.why_not),
    Backend("reference", reference.quantize),
)
_BY_NAME = {backend.name: backend for backend in BACKENDS}


def hierarchical_quantize(
    z: Tensor, codebooks: Sequence[Tensor], *, resampler: Resampler = "pixel_shuffle", backend: str | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Codes and their embeddings, top level first: int64 [B, h, w] and [B, C, h, w] a level.

    ``z`` [B, d, H, H], any strides; ``codebooks``: L of [K_l, C_l], top first, dtype and device of z. Level l has side
    H / 2^(L-1-l); C_l is d, times the pixels of its window (4^(L-1-l)) for pixel_shuffle, whose channel order is
    torch's. Each level codes what the coarser ones leave over of z resampled to it, exactly (see
    :func:`hqtvae_fast.ops.nearest_code`). On a GPU neither the resampled maps (pixel_shuffle) nor the residuals are
    stored. No gradient. Raises ValueError on other shapes or dtypes.
    """
    if z.ndim != 4 or z.shape[2] != z.shape[3]:
        raise ValueError(f"z: expected [B, d, H, H]; got {list(z.shape)}")
    if resampler not in get_args(Resampler):
        raise ValueError(f"resampler: expected one of {', '.join(get_args(Resampler))}; got {resampler!r}")
    levels = len(codebooks)
    if levels == 0 or z.shape[2] % 2 ** (levels - 1):
        raise ValueError(
            f"codebooks: expected 1 or more, H a multiple of 2^(levels - 1); got {levels}, {list(z.shape)}"
        )
    for index, codebook in enumerate(codebooks):
        width = z.shape[1] * (4 ** (levels - 1 - index) if resampler == "pixel_shuffle" else 1)
        if codebook.ndim != 2 or codebook.shape[1] != width or len(codebook) == 0:
            raise ValueError(f"codebook of level {index}: expected [K, {width}]; got {list(codebook.shape)}")
        if codebook.dtype != z.dtype or not z.is_floating_point():
            raise ValueError(f"codebook of level {index}: expected z's {z.dtype}, floating; got {codebook.dtype}")
    choice = choose("hierarchical_quantize", BACKENDS, z, codebooks, resampler, backend=backend)
    flat = torch.ops.hqtvae_fast.hierarchical_quantize(z, list(codebooks), resampler, choice.backend.name)
    return tuple(flat[:levels]), tuple(flat[levels:])


@torch.library.custom_op("hqtvae_fast::hierarchical_quantize", mutates_args=())
def _quantize(z: Tensor, codebooks: list[Tensor], resampler: str, backend: str) -> list[Tensor]:
    codes, embeddings = _BY_NAME[backend].run(z.detach(), codebooks, resampler)
    return [*codes, *embeddings]


@_quantize.register_fake
def _(z: Tensor, codebooks: list[Tensor], resampler: str, backend: str) -> list[Tensor]:
    B, sides = len(z), [z.shape[2] // 2**finer for finer in reversed(range(len(codebooks)))]
    codes = [z.new_empty((B, side, side), dtype=torch.int64) for side in sides]
    pairs = zip(sides, codebooks, strict=True)
    return [*codes, *(z.new_empty((B, side, side, book.shape[1])).permute(0, 3, 1, 2) for side, book in pairs)]


__all__ = ["hierarchical_quantize"]
