"""Residual quantization over a pyramid in one go (eq. 2-3), for resamplers without weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.kernels.hierarchical_quantize import reference, triton
from hqtvae_fast.ops.kernels.nearest_code import not_finite
from hqtvae_fast.ops.operator import operator

Resampler = Literal["pixel_shuffle", "average"]

BACKENDS = (
    Backend("triton", triton.quantize, triton.why_not),
    Backend("reference", reference.quantize),
)
_BY_NAME = {backend.name: backend for backend in BACKENDS}


def hierarchical_quantize(
    z: Tensor,
    codebooks: Sequence[Tensor],
    *,
    resampler: Resampler = "pixel_shuffle",
    backend: str | None = None,
    check: bool = False,
    invalid: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Codes and their embeddings, top level first: int64 [B, h, w] and [B, C, h, w] a level.

    ``z`` [B, d, H, H], any strides; ``codebooks``: L of [K_l, C_l], top first, dtype and device of z. Level l has side
    H / 2^(L-1-l); C_l is d, times the pixels of its window (4^(L-1-l)) for pixel_shuffle, whose channel order is
    torch's. Each level codes what the coarser ones leave over of z resampled to it, exactly (see
    :func:`hqtvae_fast.ops.nearest_code`), taken in fp32 where z is narrower. On a GPU neither the resampled maps
    (pixel_shuffle) nor the residuals are stored. No gradient: training adds :func:`straight_through`. What is not
    finite gives code 0; ``invalid``, bool [B] on the device of z, is set for such an image, without waiting for the
    device; ``check`` raises ValueError instead, and waits. Raises ValueError on other shapes or dtypes, and
    BackendError where the backend asked for cannot run.
    """
    _check(z, codebooks, resampler)
    if check and bool((wrong := not_finite(z)).any()):
        raise ValueError(f"z: expected finite numbers; got NaN or infinity in image {int(wrong.nonzero()[0])}")
    if invalid is not None:
        invalid |= not_finite(z)
    levels = len(codebooks)
    choice = choose("hierarchical_quantize", BACKENDS, z, codebooks, resampler, backend=backend)
    books = [codebook.detach() for codebook in codebooks]
    flat = torch.ops.hqtvae_fast.hierarchical_quantize(z.detach(), books, resampler, choice.backend.name)
    return tuple(flat[:levels]), tuple(flat[levels:])


def straight_through(
    z: Tensor, embeddings: Sequence[Tensor], *, resampler: Resampler = "pixel_shuffle"
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Residuals and embeddings with gradients for training, top level first: [B, C, h, w] each.

    ``z`` and ``embeddings`` as given to and by :func:`hierarchical_quantize`. The residuals are what each level coded,
    in fp32 at least: the codebooks' statistics and :func:`commitment` are of them. The embeddings come back as they
    are; their gradient goes straight through to their residual, and so to z, which alone gets one. No graph over the
    pyramid is kept, and autocast is ignored.
    """
    flat = torch.ops.hqtvae_fast.hierarchical_straight_through(z, list(embeddings), resampler)
    return tuple(flat[: len(embeddings)]), tuple(flat[len(embeddings) :])


def commitment(residuals: Sequence[Tensor], embeddings: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each level's mean |residual - embedding|^2, whose gradient draws the residual to the embedding (eq. 4)."""
    pairs = zip(residuals, embeddings, strict=True)
    return tuple(F.mse_loss(residual, embedding.detach().to(residual.dtype)) for residual, embedding in pairs)


def _check(z: Tensor, codebooks: Sequence[Tensor], resampler: str) -> None:
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


@operator("hierarchical_quantize", mutates_args=())
def _quantize(z: Tensor, codebooks: list[Tensor], resampler: str, backend: str) -> list[Tensor]:
    with torch.autocast(z.device.type, enabled=False):
        codes, embeddings = _BY_NAME[backend].run(z, codebooks, resampler)
    return [*codes, *embeddings]


@_quantize.register_fake
def _(z: Tensor, codebooks: list[Tensor], resampler: str, backend: str) -> list[Tensor]:
    B, sides = len(z), [z.shape[2] // 2**finer for finer in reversed(range(len(codebooks)))]
    codes = [z.new_empty((B, side, side), dtype=torch.int64) for side in sides]
    pairs = zip(sides, codebooks, strict=True)
    return [*codes, *(z.new_empty((B, side, side, book.shape[1])).permute(0, 3, 1, 2) for side, book in pairs)]


@operator("hierarchical_straight_through", mutates_args=())
def _straight_through(z: Tensor, embeddings: list[Tensor], resampler: str) -> list[Tensor]:
    with torch.autocast(z.device.type, enabled=False):
        residuals = reference.residuals(z, embeddings, resampler)
    # An operator may not return its inputs, nor views of them.
    return [residual.clone() for residual in residuals] + [embedding.clone() for embedding in embeddings]


@_straight_through.register_fake
def _(z: Tensor, embeddings: list[Tensor], resampler: str) -> list[Tensor]:
    residuals = reference.residuals(z, embeddings, resampler)
    return [residual.clone() for residual in residuals] + [embedding.clone() for embedding in embeddings]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    z, _, ctx.resampler = inputs
    ctx.dtype = z.dtype


def _gradients(ctx: Any, gradients: list[Tensor]) -> tuple[Tensor, list[None], None]:
    levels = len(gradients) // 2
    wide = torch.promote_types(ctx.dtype, torch.float32)
    sums = [
        (own.to(wide) + through.to(wide)) for own, through in zip(gradients[:levels], gradients[levels:], strict=True)
    ]
    return reference.residual_gradient(sums, ctx.resampler).to(ctx.dtype), [None] * levels, None


_straight_through.register_autograd(_gradients, setup_context=_setup_context)

__all__ = ["Resampler", "commitment", "hierarchical_quantize", "straight_through"]
