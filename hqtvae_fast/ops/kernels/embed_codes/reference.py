"""The same in plain torch: the definition, in any floating dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEVEL_ENDS = (1, 5, 21)
"""Local positions below the first are of the top level, below the second of the next, and so on."""


def embed_codes(
    codes: Tensor, tables: Sequence[Tensor], sources: Tensor, rows: Tensor, row: Tensor | None, mode: str
) -> Tensor:
    B, (G, S), D = len(codes), sources.shape, rows.shape[1]
    wide = torch.promote_types(rows.dtype, torch.float32)
    first = torch.zeros((), dtype=torch.int64, device=rows.device) if row is None else row
    place = rows[first * G + torch.arange(G, dtype=torch.int64, device=rows.device)].to(wide)
    total = torch.zeros(B, G, D, dtype=wide, device=rows.device)
    if mode == "interleave":
        bottom = tables[1][codes[:, 1:5]].to(wide)  # [B, 4, D / 4]
        total = total + tables[0][codes[:, :1]].to(wide) + bottom.transpose(1, 2).reshape(B, 1, D)
    else:
        for level, table in enumerate(tables):
            start = LEVEL_ENDS[level - 1] if level else 0
            mine = ((sources >= start) & (sources < LEVEL_ENDS[level]))[None, :, :, None]
            code = codes[:, sources.long().flatten()].view(B, G, S).clamp_max(len(table) - 1)  # those of other levels
            total = total + torch.where(mine, table[code].to(wide), 0.0).sum(dim=2)
        if mode == "mean":
            total = total / S
    return (total + place).to(rows.dtype)
