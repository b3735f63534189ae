"""The decoder's last convolution, down to bytes: Triton kernels. Import only where Triton is wanted.

**Cost.** At 128 channels and 256x256 pixels an image is 0.45 GFLOP for three channels, and 16.8 MB to read in bf16:
5 us of an H100's 3.35 TB/s, ten times what the arithmetic takes even where the tensor cores' columns are filled with
three. So reading is all, and what counts is that nothing but 0.2 MB of bytes is written: as bf16 or fp32 pixels and
then bytes, two more passes and launches would follow.

**Two schedules.** `bytes_kernel` is a matrix product of 9 C rows of depth
(:mod:`hqtvae_fast.ops.kernels.upsample_conv.triton_kernels`): a pixel is read for each of nine taps, from memory once
and from the second-level cache eight times more. That is 151 MB into the multiprocessors, 27 us an image of the 5.5
TB/s that an H100's cache gives (predicted).

`gathered_kernel` reads a pixel once and takes its products with all taps: 9 N columns (27, of 32) of C rows of depth,
for HIGH x WIDE pixels of a picture. Then each pixel gathers its nine products from its neighbours' rows, which costs a
round through shared memory of 128 bytes a pixel. The outermost pixels of a tile only give: at 16x16 256 pixels are read
for 196 written, 23 MB an image in all, 4 us from the cache, while memory gives the 16.8 in 6 at four fifths of its
bandwidth (predicted). Instructions are fewer too: on sm_90 21 cycles a pixel to issue them, where the other takes 35.

Sums, bias, scaling and rounding are fp32 in both; the order of sums differs."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from hqtvae_fast.ops.kernels.upsample_conv.triton_kernels import convolved


@triton.jit
def _levels(b_pixel):
    """Bytes of fp32 pixels in [-1, 1]."""
    b_level = tl.minimum(tl.maximum(b_pixel * 0.5 + 0.5, 0.0), 1.0) * 255.0
    b_level = (b_level + 12582912.0) - 12582912.0  # 1.5 * 2^23: to the nearest whole number, ties to even
    return b_level.to(tl.uint8)


@triton.jit
def bytes_kernel(
    x,  # [B, H, W, C] bf16 or fp16
    weight,  # [N, 3 * 3, C] as x
    bias,  # [N] as x
    out,  # uint8 [B, H, W, N]
    pixels,  # B * H * W
    H,
    W,
    C,
    N,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A tile of pixels."""
    i_pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_columns = tl.arange(0, COLUMNS)
    b_sum = convolved(x, weight, i_pixel, o_columns, pixels, H, W, C, N, 1, 1, 3, 3, ROWS, COLUMNS, DEPTH, WIDEN)
    m_columns = o_columns < N
    b_sum += tl.load(bias + o_columns, mask=m_columns, other=0.0).to(tl.float32)[None, :]
    o_out = i_pixel.to(tl.int64)[:, None] * N + o_columns[None, :]
    tl.store(out + o_out, _levels(b_sum), mask=(i_pixel < pixels)[:, None] & m_columns[None, :])


@triton.jit
def gathered_kernel(
    x,  # [B, H, W, C] bf16 or fp16
    weight,  # [N, 3 * 3, C] as x: 9 * N columns
    bias,  # [N] as x
    out,  # uint8 [B, H, W, N]
    H,
    W,
    C,
    N: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,  # at least 9 * N
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,  # for the interpreter, which would multiply the bits of bf16 numbers
):
    """A tile of (HIGH - 2) x (WIDE - 2) pixels of one picture."""
    ROWS: tl.constexpr = HIGH * WIDE
    down, across = tl.cdiv(H, HIGH - 2), tl.cdiv(W, WIDE - 2)
    i_tile, i_image = tl.program_id(0) % (down * across), tl.program_id(0) // (down * across)
    i_row, o_columns, o_depth = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    i_y = i_tile // across * (HIGH - 2) - 1 + i_row // WIDE
    i_x = i_tile % across * (WIDE - 2) - 1 + i_row % WIDE
    m_inside = (i_y >= 0) & (i_y < H) & (i_x >= 0) & (i_x < W)
    i_pixel = (i_image.to(tl.int64) * H + i_y) * W + i_x
    x_rows = x + (i_pixel * C)[:, None] + o_depth[None, :]
    w_columns = weight + (o_columns * C)[None, :] + o_depth[:, None]
    m_columns = (o_columns < 9 * N)[None, :]
    b_sum = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(0, C, DEPTH):
        b_left = tl.load(x_rows + first, mask=m_inside[:, None], other=0.0)
        b_right = tl.load(w_columns + first, mask=m_columns, other=0.0)
        if WIDEN:
            b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
        b_sum = tl.dot(b_left, b_right, b_sum, input_precision="ieee")
    # Of the column of tap (a, b) a pixel wants its neighbour's, a - 1 rows and b - 1 columns away.
    i_tap = o_columns % 9
    o_away = (i_tap // 3 - 1) * WIDE + i_tap % 3 - 1
    b_own = tl.gather(b_sum, (i_row[:, None] + o_away[None, :]) & (ROWS - 1), axis=0)
    m_own = m_inside & (i_row // WIDE % (HIGH - 1) != 0) & (i_row % WIDE % (WIDE - 1) != 0)
    for i_out in tl.static_range(N):
        b_pixel = tl.sum(tl.where((o_columns // 9 == i_out)[None, :], b_own, 0.0), axis=1)
        b_pixel += tl.load(bias + i_out).to(tl.float32)
        tl.store(out + i_pixel * N + i_out, _levels(b_pixel), mask=m_own)
