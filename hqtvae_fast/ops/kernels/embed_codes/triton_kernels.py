"""Gathering embeddings: a Triton kernel. Import only where Triton is wanted.

One program is one output row: it reads S rows of the tables and one of ``rows``, and writes its own, (S + 2) D values;
for S, the mean of five in bf16, 21 KB an image and step. Rows are long (3 KB), so gathers are as good as streams.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize_on_alignment=["codes", "row"])  # which differs by step
def embed_codes_kernel(
    codes,  # [B, n] int64
    table_0,  # [K, D] fp32, bf16 or fp16
    table_1,  # likewise, or [K, D / 4], or None
    table_2,  # likewise, or None
    sources,  # [G, S] int32
    rows,  # [R, D] as the tables
    row,  # [] int64, or None
    out,  # [B, G, D] as the tables
    G,
    D,
    stride_codes,
    S: tl.constexpr,
    MODE: tl.constexpr,  # "sum", "mean", "interleave"
    WIDTH: tl.constexpr,
):
    i_b, i_g = tl.program_id(0).to(tl.int64) // G, tl.program_id(0) % G
    o_d = tl.arange(0, WIDTH)
    m_d = o_d < D
    codes += i_b * stride_codes
    b_sum = tl.zeros((WIDTH,), tl.float32)
    if MODE == "interleave":
        code = tl.load(codes)
        b_sum += tl.load(table_0 + code * D + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_code = tl.load(codes + 1 + o_d % 4)
        b_sum += tl.load(table_1 + b_code * (D // 4) + o_d // 4, mask=m_d, other=0.0).to(tl.float32)
    else:
        for i_s in range(S):
            source = tl.load(sources + i_g * S + i_s)
            o_code = tl.load(codes + source) * D + o_d
            b_sum += tl.load(table_0 + o_code, mask=m_d & (source < 1), other=0.0).to(tl.float32)
            if table_1 is not None:
                b_sum += tl.load(table_1 + o_code, mask=m_d & (source >= 1) & (source < 5), other=0.0).to(tl.float32)
            if table_2 is not None:
                b_sum += tl.load(table_2 + o_code, mask=m_d & (source >= 5), other=0.0).to(tl.float32)
        if MODE == "mean":
            b_sum = b_sum / S
    o_row = i_g.to(tl.int64)
    if row is not None:
        o_row += tl.load(row) * G
    b_sum += tl.load(rows + o_row * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(out + (i_b * G + i_g) * D + o_d, b_sum.to(out.dtype.element_ty), mask=m_d)
