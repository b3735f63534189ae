"""Residual quantization level by level, in plain torch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.nearest_code import nearest_code


def quantize(z: Tensor, codebooks: Sequence[Tensor], resampler: str) -> tuple[list[Tensor], list[Tensor]]:
    """Codes and embeddings (channels-last), top first."""
    pyramid = [z]
    for _ in codebooks[1:]:
        pyramid.insert(0, downsample(pyramid[0], resampler))
    codes, embeddings = [], []
    said: Tensor | None = None  # by the coarser levels, of this one
    for index, (codebook, target) in enumerate(zip(codebooks, pyramid, strict=True)):
        residual = target if said is None else target - said
        codes.append(search(residual, codebook))
        embeddings.append(lookup(codes[-1], codebook))
        if index + 1 < len(codebooks):
            said = upsample(embeddings[-1] if said is None else said + embeddings[-1], resampler)
    return codes, embeddings


def search(z_BCHW: Tensor, codebook_KC: Tensor) -> Tensor:
    B, C, H, W = z_BCHW.shape
    return nearest_code(z_BCHW.permute(0, 2, 3, 1).reshape(-1, C), codebook_KC).view(B, H, W)


def lookup(codes_BHW: Tensor, codebook_KC: Tensor) -> Tensor:
    return F.embedding(codes_BHW, codebook_KC).permute(0, 3, 1, 2)


def downsample(x: Tensor, resampler: str) -> Tensor:
    return F.pixel_unshuffle(x, 2) if resampler == "pixel_shuffle" else F.avg_pool2d(x, 2)


def upsample(x: Tensor, resampler: str) -> Tensor:
    return F.pixel_shuffle(x, 2) if resampler == "pixel_shuffle" else F.interpolate(x, scale_factor=2, mode="nearest")
