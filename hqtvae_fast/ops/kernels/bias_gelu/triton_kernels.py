"""Bias and GELU: a Triton kernel. Import only where Triton is wanted.

Bandwidth is all: 2 e bytes a value of e bytes, in and out, one multiprocessor's 128 lanes take the error function's 30
operations faster than the bytes come. A program takes BLOCK values of one row, so that the bias needs no division.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

_SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def gelu(y, EXACT: tl.constexpr):
    """Of fp32 values."""
    if EXACT:
        return 0.5 * y * (1.0 + tl.erf(y * _SQRT_HALF))
    else:
        return y / (1.0 + tl.exp(-1.702 * y))


@triton.jit
def bias_gelu_kernel(
    x,  # [M, D] fp32, bf16 or fp16
    bias,  # [D] as x, or None
    out,  # [M, D] as x, contiguous
    D,
    stride,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < D
    b_y = tl.load(x + i_row * stride + o_d, mask=m_d, other=0.0).to(tl.float32)
    if bias is not None:
        b_y += tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(out + i_row * D + o_d, gelu(b_y, EXACT).to(out.dtype.element_ty), mask=m_d)
