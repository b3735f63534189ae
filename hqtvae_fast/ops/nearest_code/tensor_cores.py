"""Launching the exact search on tensor cores (:mod:`.kernels`), for plain rows and for levels of a pyramid."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True)
class Tile:
    """Rows, codes and channels of one program of ``score_blocks``; rows of one of ``settle_rows``."""

    rows: int
    codes: int = 128
    channels: int = 32
    warps: int = 8
    stages: int = 3
    settled_rows: int = 16

    def shared_memory(self, split: bool) -> int:
        """Bytes that the pipelined loads take: rows in fp32, codes in one or two bf16 parts."""
        return self.stages * self.channels * (4 * self.rows + (4 if split else 2) * self.codes)


# Not yet measured on a GPU. 128 x 128 gives each byte from the caches 98 FLOP, but fills the registers (255 a thread):
# windows and a second coarser level would make it spill. The smaller one is for those, and for so few rows that with
# the larger one there were fewer programs than an H100 has multiprocessors (132).
LARGE, SMALL = Tile(128), Tile(64)


def pick_tile(level: Level, codes: int) -> Tile:
    programs = -(-level.num_rows // LARGE.rows) * -(-codes // LARGE.codes)
    fits = level.window == 1 and len(level.coarser) < 2
    return LARGE if fits and programs >= 132 else SMALL


@dataclass(frozen=True)
class Level:
    """Rows of one level of a pyramid over ``z`` [B, d, H, W], any strides: windows of ``window`` x ``window`` pixels.

    ``coarser``: (codes [B, h, w] int64, codebook [K, m * m, d] fp32, window by window) of the levels above it, top
    first, m = 2 * window for the one just above; what they say is taken from z. :func:`rows` makes plain rows a level.
    """

    z: Tensor
    window: int = 1
    coarser: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def side(self) -> int:
        return self.z.shape[2] // self.window

    @property
    def num_rows(self) -> int:
        return self.z.shape[0] * self.side**2


def rows(z_NC: Tensor) -> Level:
    """A matrix as maps of one pixel."""
    return Level(z_NC[:, :, None, None])


def why_not(*tensors: Tensor) -> str | None:
    """None where the kernels can take these tensors, else the reason."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"expected fp32, bf16 or fp16; got {tensor.dtype}"
        if tensor.device.type != "cuda" and not interpreted:
            return f"expected tensors on a CUDA device (or TRITON_INTERPRET=1); got {tensor.device}"
    return None


def window_major(codebook_KC: Tensor, window: int) -> Tensor:
    """[K, d * window^2] as pixel-unshuffling orders it -> [K, window^2, d], pixels of the window row by row.

    Unshuffling by 2 puts channel c of pixel (y, x) at 4 c + 2 y + x; a window of 4 is unshuffled twice, first the
    pixels of each 2 x 2, then those groups.
    """
    K, C = codebook_KC.shape
    d = C // window**2
    halvings = int(math.log2(window))
    parts = codebook_KC.view(K, d, *[2, 2] * halvings)  # finest group first: y, x of it, then of the next
    ys = [2 + 2 * level for level in reversed(range(halvings))]
    xs = [3 + 2 * level for level in reversed(range(halvings))]
    return parts.permute(0, *ys, *xs, 1).reshape(K, window**2, d)


def search(level: Level, codebook_KWD: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest codes of a level's rows, [N] int64, and which of them float64 had to settle, [N] bool.

    ``codebook_KWD`` [K, window^2, d] as :func:`window_major` gives it; dtype and device of z.
    """
    from hqtvae_fast.ops.nearest_code import kernels

    N, K, d = level.num_rows, len(codebook_KWD), level.z.shape[1]
    tile, device = pick_tile(level, K), level.z.device
    found = torch.empty(N, dtype=torch.int64, device=device)
    settled = torch.empty(N, dtype=torch.int8, device=device)
    if N == 0:
        return found, settled.bool()
    book = codebook_KWD.float().reshape(K, -1).contiguous()
    split = level.z.dtype is not torch.bfloat16 or bool(level.coarser)
    high = book.bfloat16()
    low = (book - high.float()).bfloat16() if split else high
    norm_K = torch.linalg.vector_norm(book, dim=1, dtype=torch.float64)
    blocks = -(-K // tile.codes)
    best, second = (torch.empty(blocks, N, dtype=torch.float32, device=device) for _ in range(2))
    index = torch.empty(blocks, N, dtype=torch.int32, device=device)
    length = torch.empty(N, dtype=torch.float32, device=device)
    coarser = [tensor for pair in level.coarser for tensor in pair]
    coarser += [found, book] * (2 - len(level.coarser))  # never read
    source = (level.z, *coarser)
    strides = level.z.stride()
    shape = {"SIDE": level.window, "COARSER": len(level.coarser)}
    kernels.score_blocks[(blocks, -(-N // tile.rows))](
        *source,
        *(high, low, norm_K.square().float(), best, second, index, length),
        *(N, K, d, level.side, *strides),
        **shape,
        SPLIT=split,
        BM=tile.rows,
        BN=tile.codes,
        BK=tile.channels,
        INTERPRET=os.environ.get("TRITON_INTERPRET") == "1",
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    kernels.settle_rows[(-(-N // tile.settled_rows),)](
        *source,
        *(book, norm_K.amax().reshape(1), best, second, index, length, found, settled),
        *(N, K, d, level.side, *strides, blocks),
        *bound(book.shape[1], tile, split),
        **shape,
        BR=tile.settled_rows,
        BN=tile.codes,
        BK=tile.channels,
        BLOCKS=1 << (blocks - 1).bit_length(),
        num_warps=4,
        num_stages=2,
    )
    return found, settled.bool()


def bound(width: int, tile: Tile, split: bool) -> tuple[float, float, float, float]:
    """The bound of :mod:`.kernels` for rows of ``width`` values: factors of |z| E and of E^2, and absolute terms."""
    products = tile.channels * (3 if split else 1)
    parts = 3 * 2.0**-18 if split else 0.0
    chunks = width / min(width, tile.channels) + 1
    relative = 2 * (parts + products * 2.0**-22 + (chunks + 2) * 2.0**-24) * 1.01
    lost = math.sqrt(width) * 2.0**-62  # of a row's length, as squares below 2^-126 may count as zero, and values too
    return relative, 4 * 2.0**-24, lost, 4 * products * chunks * SMALLEST_NORMAL
