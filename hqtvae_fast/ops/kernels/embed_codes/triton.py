"""Launching the Triton kernel of the embeddings (:mod:`.triton_kernels`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import Warps, by_warps, launch, on, power_of_2, row_warps

WIDEST = 1 << 13
TILES = by_warps(1, 2, 4, 8)


def why_not(
    codes: Tensor,
    tables: Sequence[Tensor],
    sources: Tensor,
    rows: Tensor,
    row: Tensor | None,
    mode: str,
    tile: Warps | None = None,
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    if rows.shape[1] > WIDEST:
        return f"expected at most {WIDEST} values a row; got {rows.shape[1]}"
    if not (sources.is_contiguous() and rows.is_contiguous() and all(table.is_contiguous() for table in tables)):
        return "expected contiguous tables, sources and rows"
    return triton_launch.why_not(codes, *tables, sources, rows, row)


def embed_codes(
    codes: Tensor,
    tables: Sequence[Tensor],
    sources: Tensor,
    rows: Tensor,
    row: Tensor | None,
    mode: str,
    tile: Warps | None = None,
) -> Tensor:
    from hqtvae_fast.ops.kernels.embed_codes import triton_kernels

    codes = codes if codes.stride(1) == 1 else codes.contiguous()
    B, (G, S), D = len(codes), sources.shape, rows.shape[1]
    out = torch.empty((B, G, D), dtype=rows.dtype, device=rows.device)
    if out.numel() == 0:
        return out
    table_0, table_1, table_2 = (*tables, None, None)[:3]
    with on(rows):
        launch(
            triton_kernels.embed_codes_kernel,
            (B * G,),
            *(codes, table_0, table_1, table_2, sources, rows, row, out, G, D, codes.stride(0)),
            S=S,
            MODE=mode,
            WIDTH=power_of_2(D),
            num_warps=tile.warps if tile else row_warps(D),
        )
    return out
