"""Residual, bias and LayerNorm: a Triton kernel. Import only where Triton is wanted.

A program holds one row in registers: 1536 values are 12 a thread of 4 warps. So the mean is known before the variance
is taken, of centred values: the one-pass form, mean(x^2) - mean(x)^2, loses all where the mean is large. Bytes, a
row of D values of e bytes: x and what is added once in, the sum and its LayerNorm once out, 4 e D; bias, weight and
shift come from the caches. For D = 1536 in bf16 12 KB: launch-bound below some hundreds of rows, bandwidth above.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents


@triton.jit
def add_layer_norm_kernel(
    x,  # [M, D] fp32, bf16 or fp16
    added,  # likewise, or None
    bias,  # [D], or None
    weight,  # [D]
    shift,  # [D]
    total,  # [M, D] as x, contiguous
    normal,  # likewise
    eps,
    D,
    stride_x,
    stride_added,
    WIDTH: tl.constexpr,
    TRIGGER: tl.constexpr,  # whether the next kernel may be launched to wait beside this one
):
    if TRIGGER:
        gdc_launch_dependents()
    i_row = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, WIDTH)
    m_d = o_d < D
    b_sum = tl.load(x + i_row * stride_x + o_d, mask=m_d, other=0.0).to(tl.float32)
    if added is not None:
        b_sum += tl.load(added + i_row * stride_added + o_d, mask=m_d, other=0.0).to(tl.float32)
    if bias is not None:
        b_sum += tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_rounded = b_sum.to(total.dtype.element_ty)
    tl.store(total + i_row * D + o_d, b_rounded, mask=m_d)
    b_sum = b_rounded.to(tl.float32)
    b_centred = tl.where(m_d, b_sum - tl.sum(b_sum, axis=0) / D, 0.0)
    variance = tl.sum(b_centred * b_centred, axis=0) / D
    b_weight = tl.load(weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_shift = tl.load(shift + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_normal = b_centred * (1.0 / tl.sqrt_rn(variance + eps)) * b_weight + b_shift
    tl.store(normal + i_row * D + o_d, b_normal.to(normal.dtype.element_ty), mask=m_d)
