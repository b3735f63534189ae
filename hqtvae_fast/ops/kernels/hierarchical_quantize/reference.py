"""Residual quantization level by level, in plain torch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.nearest_code import nearest_code


def quantize(z: Tensor, codebooks: Sequence[Tensor], resampler: str) -> tuple[list[Tensor], list[Tensor]]:
    """Codes and embeddings (channels-last), top first. bf16 and fp16 are resampled and subtracted in fp32."""
    wide = [codebook.to(_wide(z)) for codebook in codebooks]
    codes: list[Tensor] = []
    said: Tensor | None = None  # by the coarser levels, of this one
    for index, (codebook, target) in enumerate(zip(wide, pyramid(z, len(wide), resampler), strict=True)):
        codes.append(search(target if said is None else target - said, codebook))
        if index + 1 < len(wide):
            embedding = lookup(codes[-1], codebook)
            said = upsample(embedding if said is None else said + embedding, resampler)
    return codes, [lookup(code, codebook) for code, codebook in zip(codes, codebooks, strict=True)]


def residuals(z: Tensor, embeddings: Sequence[Tensor], resampler: str) -> list[Tensor]:
    """What each level coded: z resampled to it, less what the coarser levels' embeddings say."""
    left, said = [], None
    for index, target in enumerate(pyramid(z, len(embeddings), resampler)):
        left.append(target if said is None else target - said)
        if index + 1 < len(embeddings):
            embedding = embeddings[index].to(_wide(z))
            said = upsample(embedding if said is None else said + embedding, resampler)
    return left


def residual_gradient(gradients: Sequence[Tensor], resampler: str) -> Tensor:
    """The gradient of z from those of the residuals, where an embedding's own passes straight through to its residual.

    With D and U the resamplers (linear), what levels up to l say sums up to D^(L-1-l) z as gradients go, so that
    residual l is D^(L-1-l) z - U D^(L-l) z: of pixel-shuffling nothing is left below the top, for there U D = 1. Of
    averaging, U is 4 times the transpose of D.
    """
    scale = 1.0 if resampler == "pixel_shuffle" else 4.0
    total: Tensor | None = None
    for index, own in enumerate(gradients):
        if index + 1 < len(gradients):
            own = own - scale * downsample(gradients[index + 1], resampler)
        total = own if total is None else upsample(total, resampler) / scale + own
    assert total is not None
    return total


def pyramid(z: Tensor, levels: int, resampler: str) -> list[Tensor]:
    """z resampled to each level, top first, in fp32 at least."""
    made = [z.to(_wide(z))]
    for _ in range(levels - 1):
        made.insert(0, downsample(made[0], resampler))
    return made


def _wide(z: Tensor) -> torch.dtype:
    return torch.promote_types(z.dtype, torch.float32)


def search(z_BCHW: Tensor, codebook_KC: Tensor) -> Tensor:
    B, C, H, W = z_BCHW.shape
    return nearest_code(z_BCHW.permute(0, 2, 3, 1).reshape(-1, C), codebook_KC).view(B, H, W)


def lookup(codes_BHW: Tensor, codebook_KC: Tensor) -> Tensor:
    return F.embedding(codes_BHW, codebook_KC).permute(0, 3, 1, 2)


def downsample(x: Tensor, resampler: str) -> Tensor:
    if resampler == "average":
        return F.avg_pool2d(x, 2)
    B, C, H, W = x.shape
    return F.pixel_unshuffle(x, 2) if B else x.new_empty(B, 4 * C, H // 2, W // 2)  # torch's leaves nothing as it is


def upsample(x: Tensor, resampler: str) -> Tensor:
    if resampler == "average":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    B, C, H, W = x.shape
    return F.pixel_shuffle(x, 2) if B else x.new_empty(B, C // 4, 2 * H, 2 * W)
