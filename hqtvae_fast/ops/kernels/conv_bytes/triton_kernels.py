"""The decoder's last convolution, down to bytes: a Triton kernel. Import only where Triton is wanted.

**Cost.** At 128 channels and 256x256 pixels an image is 0.45 GFLOP for three channels, and 16.8 MB to read in bf16:
5 us of an H100's 3.35 TB/s, ten times what the arithmetic takes even where the tensor cores' 16 columns are filled with
three. So memory is the floor, and what counts is that nothing but 0.2 MB of bytes is written: as bf16 or fp32 pixels
and then bytes, two more passes and launches would follow.

**Schedule.** As a matrix product (:mod:`hqtvae_fast.ops.kernels.upsample_conv.triton_kernels`): a pixel is read for
nine taps, eight times from a cache. Sums, bias, scaling and rounding are fp32."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from hqtvae_fast.ops.kernels.upsample_conv.triton_kernels import convolved


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
    b_unit = b_sum * 0.5 + 0.5
    b_level = tl.minimum(tl.maximum(b_unit, 0.0), 1.0) * 255.0
    b_level = (b_level + 12582912.0) - 12582912.0  # 1.5 * 2^23: to the nearest whole number, ties to even
    o_out = i_pixel.to(tl.int64)[:, None] * N + o_columns[None, :]
    tl.store(out + o_out, b_level.to(tl.uint8), mask=(i_pixel < pixels)[:, None] & m_columns[None, :])
