"""Launching the exact search on tensor cores (:mod:`.triton_kernels`), for plain rows and for levels of a pyramid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import interpreted, launch, multiprocessors, on, triton_version

SMALLEST_NORMAL = 2.0**-126
CHUNK_ROWS = (
    1 << 17
)  # of one launch: 12 bytes a row and block of codes are kept between the kernels, 100 MB at K = 8192
MOST_OFFSET = 2**31 - 1  # within a row: kernels count channels in 32 bits


@dataclass(frozen=True)
class Tile:
    """Rows, codes and channels of one program of ``score_blocks``."""

    rows: int
    codes: int = 128
    channels: int = 32
    warps: int = 8
    stages: int = 3

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.codes}"

    def shared_memory(self, split: bool) -> int:
        """Bytes that the pipelined loads take: rows in fp32, codes in one or two bf16 parts."""
        return self.stages * self.channels * (4 * self.rows + (4 if split else 2) * self.codes)


# 128 x 128 gives each byte from the caches 98 FLOP, but fills the registers (255 a thread):
# windows and coarser levels would make it spill. The smaller one is for those, and for so few rows that with the larger
# one there were fewer programs than multiprocessors.
LARGE, SMALL = Tile(128), Tile(64)
TILES = {tile.name: tile for tile in (LARGE, SMALL, Tile(128, codes=64), Tile(64, codes=64, warps=4))}
"""Of plain rows."""
# A program of ``settle_rows``: rows, blocks of codes looked at together, and channels of 128 codes compared at a time
# in float64: 8 are one sector of memory for each code. With 16 channels or 64 blocks, and with 8 warps, ptxas spills a
# few values of one shape or another, however many registers are left. Each version of Triton brings its own ptxas, and
# what none of its shapes spills with is another form: of 3.8 and later this one.
SETTLE = Tile(8, codes=16, channels=8, warps=4, stages=2)


def settle_tile(window: int, coarser: int) -> Tile:
    if triton_version() != "3.6":
        return replace(SETTLE, rows=16) if triton_version() == "3.7" else SETTLE
    wide = replace(SETTLE, rows=16)
    return replace(wide, channels=4) if (window, coarser) == (2, 1) else replace(wide, codes=8)


def pick_tile(level: Level, codes: int) -> Tile:
    programs = -(-level.num_rows // LARGE.rows) * -(-codes // LARGE.codes)
    fits = level.window == 1 and not level.coarser
    return LARGE if fits and programs >= multiprocessors(level.z.device) else SMALL


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

    def chunks(self, rows: int) -> Iterator[Level]:
        """Parts of the batch, of about ``rows`` rows, in order."""
        maps = max(1, rows // max(1, self.side**2))
        z = self.z if (self.z.shape[1] - 1) * self.z.stride(1) <= MOST_OFFSET else self.z.contiguous()
        for start in range(0, len(z), maps):
            part = slice(start, start + maps)
            yield replace(self, z=z[part], coarser=tuple((codes[part], book) for codes, book in self.coarser))


def rows(z_NC: Tensor) -> Level:
    """A matrix as maps of one pixel."""
    return Level(z_NC[:, :, None, None])


def describe(level: Level, codes: int, tile: Tile | None = None) -> dict[str, str]:
    """How the kernels would be launched on a level's rows."""
    tile, split = tile or pick_tile(level, codes), level.z.dtype is not torch.bfloat16 or bool(level.coarser)
    programs = -(-codes // tile.codes) * -(-min(level.num_rows, CHUNK_ROWS) // tile.rows)
    parts = "three bf16 products" if split else "one bf16 product"
    return {
        "tile": f"{tile.rows} rows x {tile.codes} codes, {tile.channels} channels at a time, {parts}",
        "programs": f"{programs} a launch, {tile.warps} warps, {tile.stages} stages",
        "shared memory": f"about {tile.shared_memory(split)} bytes",
    }


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


def why_not(z: Tensor, codebook: Tensor, tile: Tile | None = None) -> str | None:
    """None where the kernels can take these inputs, else the reason."""
    return triton_launch.why_not(z, codebook)


def nearest_code(z: Tensor, codebook: Tensor, tile: Tile | None = None) -> Tensor:
    return search(rows(z), codebook[:, None], tile)[0]


def search(level: Level, codebook_KWD: Tensor, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """Nearest codes of a level's rows, [N] int64, and which of them float64 had to settle, [N] bool.

    ``codebook_KWD`` [K, window^2, d] as :func:`window_major` gives it; dtype and device of z.
    """
    book = Book.of(codebook_KWD, split=level.z.dtype is not torch.bfloat16 or bool(level.coarser))
    found = torch.empty(level.num_rows, dtype=torch.int64, device=level.z.device)
    settled = torch.empty(level.num_rows, dtype=torch.int8, device=level.z.device)
    start = 0
    for chunk in level.chunks(CHUNK_ROWS):
        end = start + chunk.num_rows
        with on(level.z):
            _launch(chunk, book, found[start:end], settled[start:end], tile)
        start = end
    return found, settled.bool()


@dataclass(frozen=True)
class Book:
    """A codebook in fp32, its two bf16 parts (one, if it is bf16), squared lengths in fp32 and the greatest length."""

    values: Tensor
    high: Tensor
    low: Tensor
    square: Tensor
    longest: Tensor
    split: bool

    @classmethod
    def of(cls, codebook_KWD: Tensor, split: bool) -> Book:
        values = codebook_KWD.float().reshape(len(codebook_KWD), -1).contiguous()
        high = values.bfloat16()
        low = (values - high.float()).bfloat16() if split else high
        norm_K = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)
        return cls(values, high, low, norm_K.square().float(), norm_K.amax().reshape(1), split)


def _launch(level: Level, book: Book, found: Tensor, settled: Tensor, tile: Tile | None = None) -> None:
    from hqtvae_fast.ops.kernels.nearest_code import triton_kernels

    N, K, d, device = level.num_rows, len(book.values), level.z.shape[1], level.z.device
    tile, settle = tile or pick_tile(level, K), settle_tile(level.window, len(level.coarser))
    blocks = -(-K // tile.codes)
    best, second = (torch.empty(blocks, N, dtype=torch.float32, device=device) for _ in range(2))
    index = torch.empty(blocks, N, dtype=torch.int32, device=device)
    length = torch.empty(N, dtype=torch.float32, device=device)
    coarser = [tensor for pair in level.coarser for tensor in pair]
    coarser += [found, book.values] * (2 - len(level.coarser))  # never read
    source = (level.z, *coarser)
    sizes = (N, K, d, level.side, *level.z.stride())
    shape = {"SIDE": level.window, "COARSER": len(level.coarser)}
    launch(
        triton_kernels.score_blocks,
        (blocks * -(-N // tile.rows),),
        *source,
        *(book.high, book.low, book.square, best, second, index, length),
        *sizes,
        **shape,
        SPLIT=book.split,
        BM=tile.rows,
        BN=tile.codes,
        BK=tile.channels,
        INTERPRET=interpreted(),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    launch(
        triton_kernels.settle_rows,
        (-(-N // settle.rows),),
        *source,
        *(book.values, book.longest, best, second, index, length, found, settled),
        *sizes,
        blocks,
        *bound(level.window, d, tile, book.split),
        **shape,
        BR=settle.rows,
        BN=tile.codes,
        BK=settle.channels,
        GROUP=settle.codes,
        num_warps=settle.warps,
        num_stages=settle.stages,
    )


def bound(window: int, d: int, tile: Tile, split: bool) -> tuple[float, float, float, float]:
    """The bound of :mod:`.triton_kernels` for rows of window^2 d values: factors of |z| E and E^2, absolute terms."""
    chunks = window**2 * -(-d // tile.channels)
    products = chunks * tile.channels * (3 if split else 1)
    if split:
        relative = 3 * 2.0**-18 + 3 * tile.channels * 2.0**-22 + chunks * 2.0**-24
    else:
        relative = products * 2.0**-22
    relative = 2 * (relative + 2 * 2.0**-24) * 1.01
    lost = window * math.sqrt(d) * 2.0**-62  # of a row's length, as squares below 2^-126 may count as zero, and values
    return relative, 4 * 2.0**-24, lost, 4 * products * SMALLEST_NORMAL
