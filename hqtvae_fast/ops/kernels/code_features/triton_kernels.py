"""Rows of tables gathered and added: a Triton kernel. Import only where Triton is wanted.

**Cost.** A 16x16 map of 256 channels is 128 KB in bf16: an image reads as much from each level's table, in rows of 512
bytes, and writes as much: 0.4 MB, 0.1 us of an H100's bandwidth. It stands for six launches (two lookups, a shuffle, a
concatenation, a cast, a convolution) of which each takes longer to start. The tables (8192 codes x 5 pixels x 256
channels in bf16: 21 MB) fit an H100's second-level cache, though nothing keeps them there.

**Schedule.** A program takes PIXELS pixels and all their channels, so that each row is one run of whole lines. Sums are
fp32; the order of levels is fixed.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _level(codes, table, i_image, i_y, i_x, m_pixels, o_channels, m_channels, H, W, C, F: tl.constexpr):
    """A level's share, fp32 [PIXELS, CHANNELS]."""
    o_codes = (i_image * (H // F) + i_y // F) * (W // F) + i_x // F
    b_code = tl.load(codes + o_codes, mask=m_pixels, other=0)
    o_row = (b_code * (F * F) + (i_y % F) * F + i_x % F) * C
    mask = m_pixels[:, None] & m_channels[None, :]
    return tl.load(table + o_row[:, None] + o_channels[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def features_kernel(
    codes_0,  # int64 [B, H / F0, W / F0]
    table_0,  # [K, F0 * F0, C] fp32, bf16 or fp16
    codes_1,  # as level 0; read where F1 > 0
    table_1,
    codes_2,  # read where F2 > 0
    table_2,
    base,  # [FB * FB, C] as the tables
    out,  # [B, H, W, C] as the tables
    pixels,  # B * H * W
    H,
    W,
    C,
    F0: tl.constexpr,
    F1: tl.constexpr,
    F2: tl.constexpr,
    FB: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,  # a power of two, at least C
):
    i_pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    m_pixels = i_pixel < pixels
    i_image, i_y, i_x = i_pixel // (H * W), i_pixel // W % H, i_pixel % W
    o_channels = tl.arange(0, CHANNELS)
    m_channels = o_channels < C
    mask = m_pixels[:, None] & m_channels[None, :]
    o_place = ((i_y % FB) * FB + i_x % FB) * C
    b_sum = tl.load(base + o_place[:, None] + o_channels[None, :], mask=mask, other=0.0).to(tl.float32)
    b_sum += _level(codes_0, table_0, i_image, i_y, i_x, m_pixels, o_channels, m_channels, H, W, C, F0)
    if F1 > 0:
        b_sum += _level(codes_1, table_1, i_image, i_y, i_x, m_pixels, o_channels, m_channels, H, W, C, F1)
    if F2 > 0:
        b_sum += _level(codes_2, table_2, i_image, i_y, i_x, m_pixels, o_channels, m_channels, H, W, C, F2)
    o_out = i_pixel.to(tl.int64)[:, None] * C + o_channels[None, :]
    tl.store(out + o_out, b_sum.to(out.dtype.element_ty), mask=mask)
