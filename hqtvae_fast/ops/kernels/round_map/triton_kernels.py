"""Maps rounded to 8 bits: a Triton kernel, and the rounding for those that do it on their way. Import only where Triton
is wanted.

**Cost.** Before an upsampling at 128 channels and 128x128 pixels: two bf16 maps of 4.2 MB are read and 2.1 MB of bytes
written, 10.5 MB or 3 us of an H100's 3.35 TB/s, for 5 fp32 operations a value: traffic is the floor. Torch adds the two
maps and the bias and rounds in eight passes, 105 MB.

**Precision.** Sums are rounded to the maps' dtype one by one, so that the numbers are those of the separate passes. A
whole number is told from the bits of a sum with 1.5 * 2^23, which ends there: no conversion, of which a
multiprocessor does a quarter as many as of additions. Clamping comes first, so that the product with the scale is
rounded before that sum, and not fused with it.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from hqtvae_fast.ops.triton_launch import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def rounded(b_x, inverse, zero, NUMBERS: tl.constexpr):
    """fp32 values of any shape times ``inverse``, as NUMBERS: tl.int8, plus ``zero``, or fp8; NaN as 0."""
    b_x = tl.where(b_x == b_x, b_x, 0.0) * inverse
    if tl.int8 == NUMBERS:
        b_x = tl.minimum(tl.maximum(b_x, (-128 - zero) * 1.0), (127 - zero) * 1.0)
        b_bits = (b_x + 12582912.0).to(tl.int32, bitcast=True)  # 1.5 * 2^23, whose last 8 bits are 0
        return (b_bits + zero).to(tl.int8)
    b_x = tl.minimum(tl.maximum(b_x, -448.0), 448.0)
    return (_nearest_fp8(b_x) if INTERPRETED else b_x).to(NUMBERS)


@triton.jit
def _nearest_fp8(b_x):
    """The nearest number that fp8 has, still in fp32: 4 bits from 2^-6 on, multiples of 2^-9 below; ties to even. (As
    a GPU converts. The interpreter takes ties from 0, and halves what it rounds up to a power of two.)"""
    b_bits = b_x.to(tl.int32, bitcast=True)
    b_normal = ((b_bits + 0x7FFFF + ((b_bits >> 20) & 1)) >> 20 << 20).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(b_x) < 0.015625, (b_x + 24576.0) - 24576.0, b_normal)


@triton.jit
def round_kernel(
    x,  # [B, H, W, C] fp32, bf16 or fp16
    residual,  # as x; read where ADD
    shift,  # [C]; read where SHIFT
    numbers,  # [B, H, W, C] int8 or fp8
    size,  # values in all
    C,
    inverse,  # 1 / scale
    zero,
    ADD: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of values."""
    o_block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_block = o_block < size
    b_x = tl.load(x + o_block, mask=m_block, other=0.0).to(tl.float32)
    if ADD:
        b_x += tl.load(residual + o_block, mask=m_block, other=0.0).to(tl.float32)
        b_x = b_x.to(x.dtype.element_ty).to(tl.float32)
    if SHIFT:
        b_x += tl.load(shift + o_block % C, mask=m_block, other=0.0).to(tl.float32)
        b_x = b_x.to(x.dtype.element_ty).to(tl.float32)
    tl.store(numbers + o_block, rounded(b_x, inverse, zero, numbers.dtype.element_ty), mask=m_block)
