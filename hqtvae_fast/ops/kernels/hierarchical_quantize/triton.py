"""Residual quantization on tensor cores: windows and residuals are made while they are read.

Bytes, preset S, a picture: z twice (256 KB of fp32 each time, its windows from the cache), the codes (2.5 KB out, the
top ones in again), 64 rows of top embeddings, and the codebooks, which stay in the second-level cache. What is not
written and read again: the unshuffled map, the shuffled embedding and the residual, 256 KB each.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.kernels.hierarchical_quantize import reference
from hqtvae_fast.ops.kernels.nearest_code import triton
from hqtvae_fast.ops.kernels.nearest_code.triton import Level, window_major

MOST_LEVELS = 3


def why_not(z: Tensor, codebooks: Sequence[Tensor], resampler: str) -> str | None:
    """None where the kernels can take these inputs, else the reason."""
    if resampler == "pixel_shuffle" and len(codebooks) > MOST_LEVELS:
        return f"expected at most {MOST_LEVELS} levels; got {len(codebooks)}"
    return triton_launch.why_not(z, *codebooks)


def quantize(z: Tensor, codebooks: Sequence[Tensor], resampler: str) -> tuple[list[Tensor], list[Tensor]]:
    """As :func:`reference.quantize`."""
    if resampler != "pixel_shuffle":  # a quarter of the values at most: nothing worth fusing but the search
        return reference.quantize(z, codebooks, resampler)
    codes: list[Tensor] = []
    coarser: list[tuple[Tensor, Tensor]] = []
    for index, codebook in enumerate(codebooks):
        window = 2 ** (len(codebooks) - 1 - index)
        book = window_major(codebook, window)
        level = Level(z, window, tuple(coarser))
        found, _ = triton.search(level, book)
        codes.append(found.view(len(z), level.side, level.side))
        coarser.append((codes[-1], book.float().contiguous()))
    embeddings = [reference.lookup(code, codebook) for code, codebook in zip(codes, codebooks, strict=True)]
    return codes, embeddings


__all__ = ["quantize", "why_not"]
