"""Launching the exact search of csrc/cuda/nearest_code.cu on plain rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast import _cuda
from hqtvae_fast.ops.kernels.nearest_code.triton import CHUNK_ROWS, Book, Tile, bound
from hqtvae_fast.ops.triton_launch import DTYPES

TILE = Tile(rows=128, codes=128, channels=64)
WHOLE = 8  # channels: 16 bytes of bf16, what one copy moves


def why_not(z: Tensor, codebook: Tensor) -> str | None:
    """None where the kernels can take these inputs, else the reason."""
    if z.dtype not in DTYPES:
        return f"expected fp32, bf16 or fp16; got {z.dtype}"
    return _cuda.why_not(z, codebook)


def nearest_code(z_NC: Tensor, codebook_KC: Tensor) -> Tensor:
    """As :func:`hqtvae_fast.ops.nearest_code`, [N] int64."""
    return search(z_NC, codebook_KC)[0]


def search(z_NC: Tensor, codebook_KC: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest codes of the rows, [N] int64, and which of them float64 had to settle, [N] bool."""
    book = Book.of(codebook_KC[:, None], split=z_NC.dtype is not torch.bfloat16)
    found = torch.empty(len(z_NC), dtype=torch.int64, device=z_NC.device)
    settled = torch.empty(len(z_NC), dtype=torch.int8, device=z_NC.device)
    parts = zip(z_NC.split(CHUNK_ROWS), found.split(CHUNK_ROWS), settled.split(CHUNK_ROWS), strict=True)
    for part_NC, own, doubtful in parts:
        if len(part_NC) > 0:
            _search(part_NC.float().contiguous(), book, own, doubtful)
    return found, settled.bool()


def _search(z_NC: Tensor, book: Book, found: Tensor, settled: Tensor) -> None:
    (N, C), K, device = z_NC.shape, len(book.values), z_NC.device
    high = z_NC.bfloat16()
    low = (z_NC - high.float()).bfloat16() if book.split else high
    blocks = -(-K // TILE.codes)
    best, second = (torch.empty(blocks, N, dtype=torch.float32, device=device) for _ in range(2))
    index = torch.empty(blocks, N, dtype=torch.int32, device=device)
    operands = (_whole(part) for part in (high, low, book.high, book.low))
    _cuda.operator("score_codes")(*operands, book.square, best, second, index, book.split)
    length = torch.linalg.vector_norm(z_NC, dim=1, dtype=torch.float64)
    scores = (length, book.longest, best, second, index)
    _cuda.operator("settle_codes")(z_NC, book.values, *scores, found, settled, *bound(1, C, TILE, book.split))


def _whole(part: Tensor) -> Tensor:
    """With rows padded by zeros to what one copy moves."""
    missing = -part.shape[1] % WHOLE
    return F.pad(part, (0, missing)) if missing else part.contiguous()
