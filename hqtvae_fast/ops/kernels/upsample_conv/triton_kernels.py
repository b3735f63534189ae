"""Convolutions of channels-last maps as matrix products: Triton kernels. Import only where Triton is wanted.

**Method.** A tile of ROWS pixels x COLUMNS output channels is a sum over taps and input channels: for each tap the rows
of the left factor are the pixels moved by that tap, read where they lie (nothing is unfolded in memory), zeros beyond
the border. `upsample_kernel` makes the four phases of a folded upsampling (output pixels of even or odd row and column,
2x2 taps each) and stores each where it belongs in the doubled map, so that neither the doubled input nor separate
phases are ever in memory.

**Cost.** At 128 channels and 128x128 pixels, an image's 8.4 million outputs take 4 taps: 8.6 GFLOP, 8.7 us at 990
TFLOP/s; it reads 4.2 MB and writes 16.8, 6 us at 3.35 TB/s. But a tile takes ROWS + COLUMNS numbers from the
second-level cache for every ROWS x COLUMNS products: 64 FLOP a byte at 128x128, 85 with 256 to one side. Of an H100's
5.5 TB/s that is 350 and 470 TFLOP/s at most, 25 and 18 us: of preset S's four upsamplings 79 and 60 an image
(predicted).

**Schedule.** Taps and channels are one loop of DEPTH channels a step, so that loads of the next steps are under way
while the tensor cores multiply. Which taps a pixel has, and does not miss beyond the border, is a bit each, found once;
what moves from step to step is the same for all threads, and so costs a program little more than the loads themselves:
at 128x128x32 on sm_90 176 cycles to issue a step's instructions, for 256 in which the tensor cores multiply (with masks
and addresses made anew in each step it was 292; at 128x256x64 260 for 1024, and 480). A pixel is read four times a
phase, from the first- or second-level cache: the four phases and the tiles of channels of one tile of pixels follow
each other. Rows of 2 * DEPTH bytes and stores of 2 * COLUMNS bytes are whole lines. Products of bf16 or fp16 are exact,
sums fp32; the bias is added there.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def convolved(
    x,  # [B, H, W, C]
    weight,  # [N, TAPS_Y * TAPS_X, C], of one phase
    i_pixel,  # [ROWS]
    o_columns,  # [COLUMNS]
    pixels,
    H,
    W,
    C,
    N,
    up,  # rows that the first tap lies above its pixel
    left,
    TAPS_Y: tl.constexpr,
    TAPS_X: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,  # for the interpreter, which would multiply the bits of bf16 numbers
):
    """A tile of products, fp32 [ROWS, COLUMNS], summed over taps and channels; C is a multiple of DEPTH."""
    TAPS: tl.constexpr = TAPS_Y * TAPS_X
    i_y, i_x = i_pixel // W % H, i_pixel % W
    b_seen = tl.zeros((ROWS,), dtype=tl.int32)  # a bit for each tap that meets a pixel and not the border
    for i_each in tl.static_range(TAPS):
        b_y, b_x = i_y + (i_each // TAPS_X - up), i_x + (i_each % TAPS_X - left)
        m_each = (i_pixel < pixels) & (b_y >= 0) & (b_y < H) & (b_x >= 0) & (b_x < W)
        b_seen |= tl.where(m_each, 1 << i_each, 0)
    o_depth, m_columns = tl.arange(0, DEPTH), (o_columns < N)[None, :]
    x_rows = x + ((i_pixel - up * W - left).to(tl.int64) * C)[:, None] + o_depth[None, :]
    weight_columns = weight + (o_columns * TAPS * C)[None, :] + o_depth[:, None]
    b_sum = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    # A tap's next channels follow in memory, and so does its right neighbour's first one.
    to_next_row = (W - TAPS_X) * C
    i_tap, first, o_moved = 0, 0, 0
    for step in range(TAPS * (C // DEPTH)):
        m_rows = (b_seen >> i_tap & 1) != 0
        b_left = tl.load(x_rows + o_moved, mask=m_rows[:, None], other=0.0)
        b_right = tl.load(weight_columns + step * DEPTH, mask=m_columns, other=0.0)
        if WIDEN:
            b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
        b_sum = tl.dot(b_left, b_right, b_sum, input_precision="ieee")
        # Without branches, in which ptxas would let each product wait for the one before.
        m_next = first + DEPTH == C
        i_tap += tl.where(m_next, 1, 0)
        first = tl.where(m_next, 0, first + DEPTH)
        o_moved += DEPTH + tl.where(m_next & (i_tap % TAPS_X == 0), to_next_row, 0)
    return b_sum


@triton.jit
def upsample_kernel(
    x,  # [B, H, W, C] bf16 or fp16
    weight,  # [4 * N, 2 * 2, C] as x: phases (row, column) row by row
    bias,  # [N] as x
    out,  # [B, 2 * H, 2 * W, N] as x
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
    """One phase of a tile of pixels and channels."""
    tiles = tl.cdiv(N, COLUMNS)
    i_tile, i_phase, i_rows = tl.program_id(0) % tiles, tl.program_id(0) // tiles % 4, tl.program_id(0) // tiles // 4
    i_below, i_beside = i_phase // 2, i_phase % 2
    i_pixel = i_rows * ROWS + tl.arange(0, ROWS)
    o_columns = i_tile * COLUMNS + tl.arange(0, COLUMNS)
    b_sum = convolved(
        *(x, weight + i_phase * N * 4 * C, i_pixel, o_columns, pixels, H, W, C, N, 1 - i_below, 1 - i_beside),
        *(2, 2, ROWS, COLUMNS, DEPTH, WIDEN),
    )
    m_columns = o_columns < N
    b_sum += tl.load(bias + o_columns, mask=m_columns, other=0.0).to(tl.float32)[None, :]
    # Row b * H + y of the small maps is row 2 * (b * H + y) of the doubled ones.
    i_out = (i_pixel // W * 2 + i_below) * (2 * W) + i_pixel % W * 2 + i_beside
    o_out = i_out.to(tl.int64)[:, None] * N + o_columns[None, :]
    tl.store(out + o_out, b_sum.to(out.dtype.element_ty), mask=(i_pixel < pixels)[:, None] & m_columns[None, :])
