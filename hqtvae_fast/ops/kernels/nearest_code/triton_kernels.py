"""Exact nearest-code search on tensor cores: Triton kernels. Import only where Triton is wanted.

**Method.** Two kernels. `score_blocks` scores every pair, s = |e|^2 - 2 z.e, from bf16 parts (z = hi + lo, e = hi + lo,
three tensor-core products instead of one in fp32), and keeps of each row and each block of BN codes the best score, its
index and the second best. `settle_rows` finds each row's best block and asks whether any other code comes within twice
the error bound of its score. If none does (almost always) the index is certain. Otherwise it computes the distances to
all codes of those blocks whose best score comes that near in float64, and takes the least, ties to the lowest index.
No N x K matrix exists; no row count reaches the host.

**Bound.** With u = 2^-24, |z| and E = max |e| Euclidean norms, b = BK dimensions a chunk and c chunks in all:

- splitting: hi is z rounded to 8 bits (2^-9), lo the rest rounded again (2^-18); what hi hi + hi lo + lo hi leaves out
  of a product z_i e_i is below 3 * 2^-18 (1 + 2^-7) |z_i e_i|. bf16 inputs are their own hi: nothing is left out;
- products are exact in fp32, and each one's addition inside a tensor core loses less than 2^-22 of the largest
  magnitude there (aligned sums of up to 16 products and an accumulator, truncated below bit 23, the sum truncated
  again: 1 + 2/g truncations a product where g are added at once, g >= 4). Split, a chunk has its own accumulator: less
  than 3b * 2^-22 of the chunk's sum of |hi hi| + |hi lo| + |lo hi|, itself below (1 + 2^-7) of its sum of |z_i e_i|,
  however many chunks there are. Not split, one accumulator takes all: less than cb * 2^-22 of the whole sum;
- adding c chunks in fp32, rounding to nearest: c u of the whole sum;
- sums of |z_i e_i| over any set are at most |z| |e| (Cauchy-Schwarz), over all chunks together too;
- |e|^2 is rounded once from float64, and the score once.

So |s - exact| <= 2 (3*2^-18 + 3b*2^-22 + (c + 2) u) 1.01 |z| E + 4u E^2 + tiny, or 2 (cb*2^-22 + 2u) 1.01 |z| E + ...
where nothing is split. tiny covers what lies below the normal range, even if the hardware takes it for zero. Where
2 |z| E + E^2 may overflow, all codes are compared.

**Cost.** 6 N K n FLOP of bf16 for fp32 inputs (2 N K n where the inputs are bf16: their lo is zero). Memory: the rows
K/BN times and the codes N/BM times, from the second-level cache (128 rows and 128 codes of 256: 256 KB for 25 MFLOP, 98
FLOP a byte), and 12 bytes a row and block: 1/50 of the codes' own traffic.

Rows are the positions of one level of a pyramid over z [B, d, H, W] (:func:`hqtvae_fast.ops.hierarchical_quantize`):
a row is a SIDE x SIDE window of z, and from it is taken, on the fly, what the coarser levels' codes say. A plain matrix
[N, C] is the case of one pixel, SIDE = 1, no coarser level.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_rows(
    z,  # fp32, bf16 or fp16
    o_row,  # [M] row numbers
    i_window,  # which pixel of the rows' windows
    o_channel,  # [C] channels
    m_rows,  # [M]
    d,
    stride_batch,
    stride_channel,
    stride_y,
    stride_x,
    codes_0,
    book_0,
    codes_1,
    book_1,
    side,  # of the level's map
    SIDE: tl.constexpr,
    COARSER: tl.constexpr,
):
    """[M, C] values of one pixel of each row's window, less what coarser levels say of it: fp32."""
    i_batch, i_position = o_row // (side * side), o_row % (side * side)
    y = (i_position // side) * SIDE + i_window // SIDE
    x = (i_position % side) * SIDE + i_window % SIDE
    mask = m_rows[:, None] & (o_channel < d)[None, :]
    o_pixel = i_batch.to(tl.int64) * stride_batch + y * stride_y + x * stride_x
    value = tl.load(z + o_pixel[:, None] + o_channel[None, :] * stride_channel, mask=mask, other=0.0).to(tl.float32)
    if COARSER >= 1:
        # The level above the top of all: windows of WINDOW_0 pixels, maps of `side * SIDE / WINDOW_0`.
        WINDOW_0: tl.constexpr = SIDE * (2 if COARSER == 1 else 4)
        said = _load_said(codes_0, book_0, i_batch, y, x, o_channel, mask, m_rows, d, side * SIDE, WINDOW_0)
        if COARSER >= 2:
            WINDOW_1: tl.constexpr = SIDE * 2
            said += _load_said(codes_1, book_1, i_batch, y, x, o_channel, mask, m_rows, d, side * SIDE, WINDOW_1)
        value -= said
    return value


@triton.jit
def _load_said(codes, book, i_batch, y, x, o_channel, mask, m_rows, d, pixels, WINDOW: tl.constexpr):
    """What one coarser level's codes say of these pixels; book: [K, WINDOW * WINDOW, d]."""
    side = pixels // WINDOW
    code = tl.load(codes + (i_batch * side + y // WINDOW) * side + x // WINDOW, mask=m_rows, other=0)
    o_window = (y % WINDOW) * WINDOW + x % WINDOW
    o_code = (code * (WINDOW * WINDOW) + o_window) * d
    return tl.load(book + o_code[:, None] + o_channel[None, :], mask=mask, other=0.0)


@triton.jit
def _bf16(value, INTERPRET: tl.constexpr):
    """fp32 rounded to bf16. The interpreter rounds bf16 otherwise and cannot multiply it: there the result is fp32."""
    if INTERPRET:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        rounded = bits.to(tl.float32, bitcast=True)
        return tl.where(value == value, rounded, value)
    else:
        return value.to(tl.bfloat16)


@triton.jit
def score_blocks(
    z,
    codes_0,
    book_0,
    codes_1,
    book_1,
    high,  # [K, n] bf16, n = SIDE * SIDE * d, window by window
    low,
    square,  # [K] fp32: |e|^2
    best,  # [blocks, N] fp32
    second,
    index,  # [blocks, N] int32: within the block
    length,  # [N] fp32: sum of squares of a row
    N,
    K,
    d,
    side,
    stride_batch,
    stride_channel,
    stride_y,
    stride_x,
    SIDE: tl.constexpr,
    COARSER: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    # Neighbouring programs take the same rows and different codes: the rows come from memory once, the codes (8 MB for
    # 8192 of 256) stay in the second-level cache. One axis of programs: the others end at 65535.
    blocks = tl.cdiv(K, BN)
    i_block, i_rows = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    o_row = i_rows * BM + tl.arange(0, BM)
    o_code = tl.arange(0, BN)  # within the block, so that what is counted per element stays within 32 bits
    m_rows, m_codes = o_row < N, o_code < K - i_block * BN
    n = SIDE * SIDE * d
    first = i_block.to(tl.int64) * BN * n
    high += first
    low += first
    chunks = tl.cdiv(d, BK)
    b_product = tl.zeros([BM, BN], tl.float32)
    b_length = tl.zeros([BM], tl.float32)
    for i_chunk in range(SIDE * SIDE * chunks):
        i_window, i_part = 0, i_chunk
        if SIDE > 1:  # without windows no division keeps registers from the sums
            i_window, i_part = i_chunk // chunks, i_chunk % chunks
        o_channel = i_part * BK + tl.arange(0, BK)
        b_z = _load_rows(
            z, o_row, i_window, o_channel, m_rows, d,
            stride_batch, stride_channel, stride_y, stride_x, codes_0, book_0, codes_1, book_1, side, SIDE, COARSER,
        )  # fmt: skip
        o_book = o_code[None, :] * n + (i_window * d + o_channel)[:, None]
        m_book = m_codes[None, :] & (o_channel < d)[:, None]
        b_high = tl.load(high + o_book, mask=m_book, other=0.0)
        b_z_high = _bf16(b_z, INTERPRET)
        if INTERPRET:
            b_high = b_high.to(tl.float32)
        if SPLIT:
            b_low = tl.load(low + o_book, mask=m_book, other=0.0)
            b_z_low = _bf16(b_z - b_z_high.to(tl.float32), INTERPRET)
            if INTERPRET:
                b_low = b_low.to(tl.float32)
            b_chunk = tl.dot(b_z_low, b_high, input_precision="ieee")  # small terms first
            b_chunk = tl.dot(b_z_high, b_low, b_chunk, input_precision="ieee")
            b_chunk = tl.dot(b_z_high, b_high, b_chunk, input_precision="ieee")
            b_product += b_chunk
        else:  # Triton would make one accumulator of a sum of such products anyway
            b_product = tl.dot(b_z_high, b_high, b_product, input_precision="ieee")
        b_length += tl.sum(b_z * b_z, axis=1)
    b_square = tl.load(square + i_block * BN + o_code, mask=m_codes, other=float("inf"))
    b_score = b_square[None, :] - 2.0 * b_product
    b_best, b_index = tl.min(b_score, axis=1, return_indices=True, return_indices_tie_break_left=True)
    b_second = tl.min(tl.where(tl.arange(0, BN)[None, :] == b_index[:, None], float("inf"), b_score), axis=1)
    o_out = i_block.to(tl.int64) * N + o_row  # rows side by side: whole lines are written
    tl.store(best + o_out, b_best, mask=m_rows)
    tl.store(second + o_out, b_second, mask=m_rows)
    tl.store(index + o_out, b_index, mask=m_rows)
    if i_block == 0:
        tl.store(length + o_row, b_length, mask=m_rows)


@triton.jit
def settle_rows(
    z,
    codes_0,
    book_0,
    codes_1,
    book_1,
    book,  # [K, n] fp32, window by window
    longest,  # [1] fp64: max |e|
    best,
    second,
    index,
    length,
    found,  # [N] int64
    settled,  # [N] int8: 1 where float64 had to decide
    N,
    K,
    d,
    side,
    stride_batch,
    stride_channel,
    stride_y,
    stride_x,
    blocks,
    relative,  # the bound's factors of |z| E and of E^2, and its absolute terms, as fp32
    relative_square,
    tiny_length,
    tiny,
    SIDE: tl.constexpr,
    COARSER: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    o_row = tl.program_id(0) * BR + tl.arange(0, BR)
    m_rows = o_row < N
    b_least = tl.full([BR], float("inf"), tl.float32)
    i_least = tl.zeros([BR], tl.int32)
    for i_group in range(tl.cdiv(blocks, GROUP)):
        b_best = _load_blocks(best, i_group, o_row, m_rows, N, blocks, GROUP)
        b_group, i_inside = tl.min(b_best, axis=0, return_indices=True, return_indices_tie_break_left=True)
        i_least = tl.where(b_group < b_least, i_group * GROUP + i_inside, i_least)
        b_least = tl.where(b_group < b_least, b_group, b_least)  # stays infinite where nothing compares: NaN
    b_longest = tl.load(longest)
    # Squares of very small values may have been lost, and rounding may have shortened the rest.
    b_length = tl.sqrt(tl.load(length + o_row, mask=m_rows, other=0.0)).to(tl.float64) * 1.001 + tiny_length
    b_bound = relative * b_length * b_longest + relative_square * b_longest * b_longest
    b_bound += tiny_length * (b_length + b_longest) + tiny
    b_limit = b_least.to(tl.float64) + 2.0 * b_bound
    overflows = 2.0 * b_length * b_longest + b_longest * b_longest > 8.5e37  # 2^126: beyond, scores may be infinite
    b_limit = tl.where(overflows, float("inf"), b_limit)
    b_near = tl.zeros([BR], tl.int32)
    for i_group in range(tl.cdiv(blocks, GROUP)):
        b_best = _load_blocks(best, i_group, o_row, m_rows, N, blocks, GROUP)
        b_second = _load_blocks(second, i_group, o_row, m_rows, N, blocks, GROUP)
        b_near += tl.sum((b_best.to(tl.float64) <= b_limit[None, :]).to(tl.int32), axis=0)
        b_near += tl.sum((b_second.to(tl.float64) <= b_limit[None, :]).to(tl.int32), axis=0)
    doubtful = m_rows & ((b_near != 1) | ~(b_limit < float("inf")))
    i_inside = tl.load(index + i_least.to(tl.int64) * N + o_row, mask=m_rows, other=0)
    # Doubtful rows are written below, by other threads: each place has one writer.
    tl.store(found + o_row, i_least.to(tl.int64) * BN + i_inside, mask=m_rows & ~doubtful)
    tl.store(settled + o_row, doubtful.to(tl.int8), mask=m_rows)
    if tl.sum(doubtful.to(tl.int32), axis=0) > 0:
        for i_row in range(BR):
            if tl.sum(tl.where(tl.arange(0, BR) == i_row, doubtful.to(tl.int32), 0), axis=0) > 0:
                limit = tl.sum(tl.where(tl.arange(0, BR) == i_row, b_limit, 0.0), axis=0)
                _settle(
                    z, codes_0, book_0, codes_1, book_1, book, best, found,
                    tl.program_id(0) * BR + i_row, limit, N, K, d, side,
                    stride_batch, stride_channel, stride_y, stride_x, blocks, SIDE, COARSER, BN, BK,
                )  # fmt: skip


@triton.jit
def _load_blocks(values, i_group, o_row, m_rows, N, blocks, GROUP: tl.constexpr):
    """[GROUP, rows] of what each block of codes found; infinite beyond the last."""
    o_block = i_group * GROUP + tl.arange(0, GROUP)
    mask = (o_block < blocks)[:, None] & m_rows[None, :]
    return tl.load(values + o_block.to(tl.int64)[:, None] * N + o_row[None, :], mask=mask, other=float("inf"))


@triton.jit
def _settle(
    z,
    codes_0,
    book_0,
    codes_1,
    book_1,
    book,
    best,
    found,
    i_row,
    limit,
    N,
    K,
    d,
    side,
    stride_batch,
    stride_channel,
    stride_y,
    stride_x,
    blocks,
    SIDE: tl.constexpr,
    COARSER: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The nearest code of one row in float64, among the blocks that come near: a row that is not finite gives 0."""
    o_row = i_row + tl.arange(0, 1)
    least = tl.full([], float("inf"), tl.float64)
    nearest = tl.zeros([], tl.int64)
    chunks = tl.cdiv(d, BK)
    for i_block in range(blocks):
        score = tl.load(best + (tl.zeros([], tl.int64) + i_block) * N + i_row).to(tl.float64)
        if (score <= limit) | ~(limit < float("inf")):
            o_code = tl.arange(0, BN)
            m_codes = o_code < K - i_block * BN
            first = book + (tl.zeros([], tl.int64) + i_block) * BN * (SIDE * SIDE * d)
            b_distance = tl.where(m_codes, 0.0, float("inf")).to(tl.float64)
            for i_chunk in range(SIDE * SIDE * chunks):
                i_window = i_chunk // chunks
                o_channel = (i_chunk % chunks) * BK + tl.arange(0, BK)
                b_z = _load_rows(
                    z, o_row, i_window, o_channel, o_row < N, d,
                    stride_batch, stride_channel, stride_y, stride_x, codes_0, book_0, codes_1, book_1, side,
                    SIDE, COARSER,
                )  # fmt: skip
                o_book = o_code[:, None] * (SIDE * SIDE * d) + (i_window * d + o_channel)[None, :]
                m_book = m_codes[:, None] & (o_channel < d)[None, :]
                b_apart = b_z.to(tl.float64) - tl.load(first + o_book, mask=m_book, other=0.0).to(tl.float64)
                b_apart = tl.where(m_book, b_apart, 0.0)
                b_distance += tl.sum(b_apart * b_apart, axis=1)
            closest, i_inside = tl.min(b_distance, axis=0, return_indices=True, return_indices_tie_break_left=True)
            if closest < least:
                least = closest
                nearest = (i_block * BN + i_inside).to(tl.int64)
    tl.store(found + i_row, nearest)
