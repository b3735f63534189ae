"""The EMA codebook step: Triton kernels. Import only where Triton is wanted.

**Statistics.** Two ways to add N rows up by their codes. `add_rows` reads the rows as they lie and adds each value to
its code's sum by an atomic in fp32, performed in the second-level cache: no order is kept, so the last bits differ from
run to run. `add_segments` takes the rows sorted by code; one program adds up one code's rows, a tile after the other,
so that the result is always the same. Rows of 256 bytes and more are read whole either way; only a code that most rows
chose makes the second one slow, as one program then walks them.

**Update.** `smooth` reads running sums and new sums once and writes running sums and embeddings once: 16 bytes a value,
which is all there is to it (134 MB for 8192 codes of 1024: 0.04 ms of an H100's bandwidth).

Nothing here multiplies matrices: memory is the limit, 4 bytes for one addition.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_rows(
    z,  # [N, C] fp32, bf16 or fp16
    codes,  # [N] int64
    counts,  # [K] fp32, zeros
    sums,  # [K, C] fp32, zeros
    N,
    K,
    C,
    stride_z,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_width = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    m_rows = o_row < N
    b_code = tl.load(codes + o_row, mask=m_rows, other=-1)
    m_rows = (b_code >= 0) & (b_code < K)
    mask = m_rows[:, None] & (o_width < C)[None, :]
    b_z = tl.load(z + o_row[:, None] * stride_z + o_width[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.atomic_add(sums + b_code[:, None] * C + o_width[None, :], b_z, mask=mask, sem="relaxed")
    if tl.program_id(1) == 0:
        tl.atomic_add(counts + b_code, tl.full([ROWS], 1.0, tl.float32), mask=m_rows, sem="relaxed")


@triton.jit
def add_segments(
    z,  # [N, C] fp32, bf16 or fp16
    order,  # [N] int64: rows sorted by code
    starts,  # [K + 1] int64: where each code's rows start in that order
    counts,  # [K] fp32
    sums,  # [K, C] fp32
    C,
    stride_z,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    i_code = tl.program_id(0).to(tl.int64)
    o_width = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    m_width = o_width < C
    start, end = tl.load(starts + i_code), tl.load(starts + i_code + 1)
    b_sum = tl.zeros([WIDTH], tl.float32)
    for i_tile in range(tl.cdiv(end - start, ROWS)):
        o_sorted = start + i_tile * ROWS + tl.arange(0, ROWS)
        m_rows = o_sorted < end
        b_row = tl.load(order + o_sorted, mask=m_rows, other=0)
        mask = m_rows[:, None] & m_width[None, :]
        b_z = tl.load(z + b_row[:, None] * stride_z + o_width[None, :], mask=mask, other=0.0).to(tl.float32)
        b_sum += tl.sum(b_z, axis=0)
    tl.store(sums + i_code * C + o_width, b_sum, mask=m_width)
    if tl.program_id(1) == 0:
        tl.store(counts + i_code, (end - start).to(tl.float32))


@triton.jit
def smooth(
    embedding,  # [K, C] fp32, written
    embedding_sum,  # [K, C] fp32, decayed in place
    sums,  # [K, C] fp32, new
    cluster_size,  # [K] fp32, decayed already
    total,  # [1] fp32: their sum
    decay,
    epsilon,
    K,
    C,
    CODES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    o_code = tl.program_id(0) * CODES + tl.arange(0, CODES)
    o_width = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    m_codes = o_code < K
    mask = m_codes[:, None] & (o_width < C)[None, :]
    o_value = o_code.to(tl.int64)[:, None] * C + o_width[None, :]
    all_counts = tl.load(total)
    b_size = tl.load(cluster_size + o_code, mask=m_codes, other=1.0)
    b_smoothed = (b_size + epsilon) / (all_counts + epsilon * K) * all_counts
    b_sum = tl.load(embedding_sum + o_value, mask=mask, other=0.0)
    b_sum = b_sum * decay + tl.load(sums + o_value, mask=mask, other=0.0) * (1 - decay)
    tl.store(embedding_sum + o_value, b_sum, mask=mask)
    tl.store(embedding + o_value, b_sum / b_smoothed[:, None], mask=mask)
