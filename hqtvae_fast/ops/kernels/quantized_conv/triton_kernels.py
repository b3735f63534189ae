"""Convolutions of 8-bit channels-last maps as matrix products: a Triton kernel. Import only where Triton is wanted.

**Method.** As in :mod:`hqtvae_fast.ops.kernels.upsample_conv.triton_kernels`: a tile of ROWS pixels x COLUMNS output
channels, summed over taps and channels, with nothing unfolded in memory; one phase of a folded upsampling, or the only
one of a 3x3 convolution. Channels are taken block by block of one scale: all taps of a block are summed by the tensor
cores (int32 for int8, exactly; fp32 for fp8), then added to an fp32 sum with the block's scale. With a scale a map the
block is all channels, and there is one such addition.

**Cost.** Of preset S's decoder 32 of 34 3x3 convolutions are taken, 136.6 of 142.6 GFLOP an image: 69 us of an H100's
1,979 TFLOP/s and 219 of an A100's 624, where bf16's floor is twice that. At 128 channels and 128x128 pixels, 4.8 GFLOP
or 2.4 us of an H100, 2.1 MB are read and 4.2 written in bf16, 1.9 us: arithmetic and traffic come close.
From the caches a tile of 128x128 takes a byte for 128 FLOP, twice as many as bf16's. A block of 32 channels costs an
fp32 multiply-add for every 288 8-bit ones.

Predicted by ``python -m benchmarks.model --convolutions triton/int8``, not measured, of 50 images: 704 TFLOP/s on an
H100, as fast as its second-level cache feeds such tiles, and 374 on an A100, 60 % of its peak. Of the decoder's time
these are 59 % and 63 %, and all of it is 16.6 ms instead of 21.5, and 29.1 instead of 46.7.

**Zero.** Maps behind a SiLU use all 256 numbers only if another than 0 stands for 0 (44 dB where numbers alike on both
sides give 41). Beyond the map lies the number 0 and not that one, so what it adds depends on the taps within the map:
`offsets` has it for each of the 16 combinations of borders, exact in int32, a row of N numbers that nearly all pixels
of a tile share. It is loaded where sums begin, 4 bytes for each sum of at least 9 * C products.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sum_block(
    x, weight, b_sum, first, block, i_phase, i_pixel, o_columns, pixels, H, W, C, N,
    PHASES: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """``b_sum`` [ROWS, COLUMNS] and the sums over all taps of the ``block`` channels from ``first`` on, without
    scales."""
    i_below, i_beside = i_phase // 2, i_phase % 2
    i_y, i_x = i_pixel // W % H, i_pixel % W
    o_depth = tl.arange(0, DEPTH)
    m_columns = o_columns < N
    steps = block // DEPTH
    for step in range(TAPS * TAPS * steps):
        i_tap, o_channel = step // steps, first + step % steps * DEPTH
        i_down, i_right = i_tap // TAPS - 1 + i_below, i_tap % TAPS - 1 + i_beside
        b_y, b_x = i_y + i_down, i_x + i_right
        m_rows = (i_pixel < pixels) & (b_y >= 0) & (b_y < H) & (b_x >= 0) & (b_x < W)
        o_rows = (i_pixel + i_down * W + i_right).to(tl.int64) * C + o_channel
        b_left = tl.load(x + o_rows[:, None] + o_depth[None, :], mask=m_rows[:, None], other=0.0)
        o_weight = ((i_phase * N + o_columns) * (TAPS * TAPS) + i_tap) * C + o_channel
        b_right = tl.load(weight + o_weight[None, :] + o_depth[:, None], mask=m_columns[None, :], other=0.0)
        b_sum = tl.dot(b_left, b_right, b_sum, out_dtype=SUMS)
    return b_sum


@triton.jit
def _offsets(offsets, i_pixel, o_columns, H, W, width, m_columns):
    """[ROWS, COLUMNS] of the table, by the borders that each pixel lies at: nearly all one row, from the caches."""
    i_y, i_x = i_pixel // W % H, i_pixel % W
    i_border = (i_y == 0).to(tl.int32) + 2 * (i_y == H - 1).to(tl.int32)
    i_border += 4 * (i_x == 0).to(tl.int32) + 8 * (i_x == W - 1).to(tl.int32)
    return tl.load(offsets + i_border[:, None] * width + o_columns[None, :], mask=m_columns[None, :], other=0)


@triton.jit
def quantized_kernel(
    x,  # [B, H, W, C] int8 or fp8
    weight,  # [PHASES * N, TAPS * TAPS, C] as x
    x_scales,  # [C / block] fp32
    weight_scales,  # [PHASES * N] fp32
    bias,  # [N] fp32
    offsets,  # [16, PHASES * N] int32; read where OFFSET
    out,  # [B, H, W, N], or [B, 2 * H, 2 * W, N] with four phases
    pixels,  # B * H * W
    H,
    W,
    C,
    N,
    block,  # channels of one scale, a multiple of DEPTH
    PHASES: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SUMS: tl.constexpr,  # tl.int32 or tl.float32
    ONE: tl.constexpr,  # whether block is C: no second sum is held then, which halves the registers of sums
    OFFSET: tl.constexpr,  # whether a number stands for 0; with ONE
):
    """One phase of a tile of pixels and channels."""
    tiles = tl.cdiv(N, COLUMNS)
    i_tile, i_rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    i_phase, i_rows = i_rest % PHASES, i_rest // PHASES
    i_pixel = i_rows * ROWS + tl.arange(0, ROWS)
    o_columns = i_tile * COLUMNS + tl.arange(0, COLUMNS)
    m_columns = o_columns < N
    b_zeros = tl.zeros((ROWS, COLUMNS), dtype=SUMS)
    if ONE:
        if OFFSET:  # taken off before sums begin: behind them registers would hold both
            b_zeros -= _offsets(offsets + i_phase * N, i_pixel, o_columns, H, W, PHASES * N, m_columns)
        b_sum = _sum_block(
            x, weight, b_zeros, 0, C, i_phase, i_pixel, o_columns, pixels, H, W, C, N,
            PHASES, TAPS, ROWS, COLUMNS, DEPTH, SUMS,
        )  # fmt: skip
        b_total = b_sum.to(tl.float32) * tl.load(x_scales)
    else:
        b_total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for first in range(0, C, block):
            b_sum = _sum_block(
                x, weight, b_zeros, first, block, i_phase, i_pixel, o_columns, pixels, H, W, C, N,
                PHASES, TAPS, ROWS, COLUMNS, DEPTH, SUMS,
            )  # fmt: skip
            b_total += b_sum.to(tl.float32) * tl.load(x_scales + first // block)
    b_scale = tl.load(weight_scales + i_phase * N + o_columns, mask=m_columns, other=0.0)
    b_bias = tl.load(bias + o_columns, mask=m_columns, other=0.0)
    b_out = b_total * b_scale[None, :] + b_bias[None, :]
    i_out = i_pixel
    if PHASES == 4:  # row b * H + y of the small maps is row 2 * (b * H + y) of the doubled ones
        i_out = (i_pixel // W * 2 + i_phase // 2) * (2 * W) + i_pixel % W * 2 + i_phase % 2
    o_out = i_out.to(tl.int64)[:, None] * N + o_columns[None, :]
    tl.store(out + o_out, b_out.to(out.dtype.element_ty), mask=(i_pixel < pixels)[:, None] & m_columns[None, :])
