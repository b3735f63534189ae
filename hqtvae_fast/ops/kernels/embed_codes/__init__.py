"""Inputs of the transformers from codes: gathered, summed and given their position in one pass (eq. 5-8, 11-12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.embed_codes import reference, triton
from hqtvae_fast.ops.operator import dispatched

Mode = Literal["sum", "mean", "interleave"]
MODES: tuple[Mode, ...] = ("sum", "mean", "interleave")


def embed_codes(
    codes: Tensor,
    tables: Sequence[Tensor],
    sources: Tensor,
    rows: Tensor,
    row: Tensor | None = None,
    *,
    mode: Mode = "sum",
    backend: str | None = None,
) -> Tensor:
    """Embeddings [B, G, D] of G positions for each of B images.

    ``codes`` int64 [B, n], one local pyramid an image (any strides between images): position 0 is of level 0, 1-4 of
    level 1, 5-20 of level 2; ``tables``: one [K, D] a level, top first, one floating dtype, contiguous; ``sources``
    int32 [G, S] on the device: the local positions whose codes position g reads; ``rows`` [R, D]: what is added to it,
    rows[row * G + g], where ``row`` is an int64 scalar on the device (the step of the drawing), None: 0.

    ``mode``: "sum" of the sources' embeddings (the head's inputs, IET's), "mean" (N_IET = 0), or "interleave" (the FFHQ
    model; G = 1, n = 5, two tables, the second [K, D / 4]: channel 4 c + k is the top code's plus channel c of bottom
    code k). Sums are taken in fp32 (fp64 for fp64) and rounded once. No gradient. A code that no table has is undefined
    on a GPU. Raises ValueError on other shapes.

    ``backend``: "triton" (CUDA) or "reference" (anywhere).
    """
    D = tables[0].shape[1]
    widths = [D, D // 4] if mode == "interleave" else [D] * len(tables)
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}; got {mode!r}")
    if not 1 <= len(tables) <= 3 or [table.shape[1] for table in tables] != widths:
        raise ValueError(f"tables: expected 1 to 3 of widths {widths}; got {[list(t.shape) for t in tables]}")
    if sources.ndim != 2 or sources.dtype != torch.int32 or codes.ndim != 2 or codes.dtype != torch.int64:
        raise ValueError(
            f"codes and sources: expected int64 [B, n] and int32 [G, S]; "
            f"got {codes.dtype} {list(codes.shape)} and {sources.dtype} {list(sources.shape)}"
        )
    if rows.ndim != 2 or rows.shape[1] != D or len(rows) % len(sources) or {rows.dtype} != {t.dtype for t in tables}:
        raise ValueError(f"rows: expected {tables[0].dtype} [R * {len(sources)}, {D}]; got {list(rows.shape)}")
    inputs = (codes, list(tables), sources, rows, row, mode)
    choice = choose("embed_codes", BACKENDS, *inputs, backend=backend)
    return torch.ops.hqtvae_fast.embed_codes(*inputs, choice.backend.name)


BACKENDS = (
    *with_tiles("triton", triton.embed_codes, triton.why_not, triton.TILES),
    Backend("reference", reference.embed_codes),
)


@dispatched("embed_codes", BACKENDS, mutates_args=())
def _embed(
    codes: Tensor,
    tables: list[Tensor],
    sources: Tensor,
    rows: Tensor,
    row: Tensor | None,
    mode: str,
    backend: str,
) -> Tensor:
    return rows.new_empty(codes.shape[0], sources.shape[0], rows.shape[1])


__all__ = ["embed_codes"]
