"""The sum of two channels-last maps and a vector of channels: a Triton kernel. Import only where Triton is wanted.

**Cost.** Two reads and a write of a map, 6 bytes a value in bf16, for two additions. The decoder of preset S has three
such sums an image, of 3.7 million values together: 22 MB, 8 us of an H100's 3.35 TB/s at the four fifths that copies
reach (predicted). Torch's two operations move 37 MB in two launches each, for the sum is read and written again to add
the vector: 14 us.

**Schedule.** As :mod:`hqtvae_fast.ops.kernels.group_norm_silu.triton_kernels` reads its maps: a program takes all C
channels of ROWS pixels, 16 bytes a load in memory's order, and the vector once. Sums are fp32, rounded once.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_kernel(
    x,  # [B, H, W, C] fp32, bf16 or fp16
    residual,  # as x
    shift,  # [C]
    total,  # as x
    pixels,  # B * H * W
    C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Of ROWS pixels."""
    i_rows, o_channels = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, C)
    m_rows = (i_rows < pixels)[:, None]
    o_tile = i_rows.to(tl.int64)[:, None] * C + o_channels[None, :]
    b_x = tl.load(x + o_tile, mask=m_rows, other=0.0).to(tl.float32)
    b_x += tl.load(residual + o_tile, mask=m_rows, other=0.0).to(tl.float32)
    b_x += tl.load(shift + o_channels).to(tl.float32)[None, :]
    tl.store(total + o_tile, b_x.to(total.dtype.element_ty), mask=m_rows)
