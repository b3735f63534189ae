"""Convolutions of channels-last maps as matrix products: Triton kernels. Import only where Triton is wanted.

**Method.** A tile of ROWS pixels x COLUMNS output channels is a sum over taps and input channels: for each tap the rows
of the left factor are the pixels moved by that tap, read where they lie (nothing is unfolded in memory), zeros beyond
the border. `upsample_kernel` makes the four phases of a folded upsampling (output pixels of even or odd row and column,
2x2 taps each) and stores each where it belongs in the doubled map, so that neither the doubled input nor separate
phases are ever in memory.

**Cost.** At 128 channels and 128x128 pixels, an image's 16.8 million outputs take 4 taps: 17.2 GFLOP, 17 us at 990
TFLOP/s; it reads 4.2 MB and writes 16.8, 6 us at 3.35 TB/s: arithmetic is the floor.

**Schedule.** Taps and channels are one loop of DEPTH channels a step, so that loads of the next steps are under way
while the tensor cores multiply. A pixel is read four times a phase, from the first- or second-level cache: the four
phases and the tiles of channels of one tile of pixels follow each other. Rows of 2 * DEPTH bytes and stores of
2 * COLUMNS bytes are whole lines. Products of bf16 or fp16 are exact, sums fp32; the bias is added there.
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
    i_y, i_x = i_pixel // W % H, i_pixel % W
    o_depth = tl.arange(0, DEPTH)
    m_columns = o_columns < N
    steps = C // DEPTH
    b_sum = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in range(TAPS_Y * TAPS_X * steps):
        i_tap, first = step // steps, step % steps * DEPTH
        i_down, i_right = i_tap // TAPS_X - up, i_tap % TAPS_X - left
        b_y, b_x = i_y + i_down, i_x + i_right
        m_rows = (i_pixel < pixels) & (b_y >= 0) & (b_y < H) & (b_x >= 0) & (b_x < W)
        o_rows = (i_pixel + i_down * W + i_right).to(tl.int64) * C + first
        b_left = tl.load(x + o_rows[:, None] + o_depth[None, :], mask=m_rows[:, None], other=0.0)
        o_weight = (o_columns * (TAPS_Y * TAPS_X) + i_tap) * C + first
        b_right = tl.load(weight + o_weight[None, :] + o_depth[:, None], mask=m_columns[None, :], other=0.0)
        if WIDEN:
            b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
        b_sum = tl.dot(b_left, b_right, b_sum, input_precision="ieee")
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
