"""Products of 8-bit numbers with more rows than a skinny product: Triton kernels. Import only where Triton is wanted.

**Method.** `round_rows_kernel`: a program a row, which it holds in registers: its largest magnitude, then the numbers.
`quantized_linear_kernel`: a tile of ROWS x COLUMNS outputs on tensor cores, int8 summed in int32 or fp8 in fp32, and
scales, bias, GELU and residual on what comes out. In PARTS, the sums go to memory as they are and `add_parts_kernel`
adds them up in their order: no atomics, the same bits every time.

**Cost**, a product of M rows: 2 M N K FLOP, twice as fast as bf16's (H100: 1,979 TOPS of int8 or fp8, A100: 624 of
int8), and bytes: N K of the weight, half of bf16's; M K 3 for rounding (2 read, 1 written) and M K again, from the
second-level cache; 2 M N written. Preset S at batch 256, up (6144 x 1536): 4.8 GFLOP, 2.4 us of an H100, and 9.4 MB of
weight, 2.8 us of its 3.35 TB/s; tiles of 128x128 draw 38 MB from the cache, 7 us of 5.5 TB/s, where bf16's draw 75.

**Predicted, not measured** (a first-order model of an H100): of a step of S at batch 256, products and GELUs take 1.3
of 1.75 ms in bf16; 0.9 ms in 8 bits, a quarter of the drawing less, 82 roundings of 2 us among them; 1.03 ms with each
block's last product left in bf16. At batch 50 the weights' bytes halve, and the roundings' launches take most of that
back.

**Schedule.** Both factors lie row by row with their inputs next to each other, as the 8-bit instructions want them, so
nothing is transposed. A step takes DEPTH inputs, 128 bytes being a whole line. Tiles of the same outputs follow each
other, so that their weight comes from memory once. Rows and outputs beyond the last are the last ones again, and not
stored: no load but the last step's needs a mask. Multiply-adds are not fused: then the numbers after the sums are the
reference's, bit for bit.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from hqtvae_fast.ops.kernels.bias_gelu.triton_kernels import gelu

_LEAST = tl.constexpr(2.0**-100)
_TO_WHOLE = tl.constexpr(12582912.0)  # 1.5 * 2^23: added and taken off, to the nearest whole number, ties to even


@triton.jit
def round_rows_kernel(
    x,  # [M, K] fp32, bf16 or fp16, a row's values next to each other
    numbers,  # [M, K] int8 or fp8, contiguous
    scales,  # [M] fp32
    K,
    stride,
    LARGEST: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of 2, at least K
):
    i_row = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, WIDTH)
    m_k = o_k < K
    b_x = tl.load(x + i_row * stride + o_k, mask=m_k, other=0.0).to(tl.float32)
    b_size = tl.abs(b_x)
    strange = tl.max(tl.where(b_size < float("inf"), 0, 1), axis=0) > 0  # NaN is below nothing
    size = tl.where(strange, 1.0, tl.maximum(tl.max(b_size, axis=0), _LEAST))
    b_number = b_x * tl.div_rn(LARGEST, size)
    if WHOLE:
        b_number = (b_number + _TO_WHOLE) - _TO_WHOLE
    b_number = tl.where(strange, 0.0, b_number)
    tl.store(numbers + i_row * K + o_k, b_number.to(numbers.dtype.element_ty), mask=m_k)
    tl.store(scales + i_row, tl.where(strange, float("nan"), tl.div_rn(size, LARGEST)))


@triton.jit
def _finish(
    b_sum,  # [R, C]
    scales,
    scale,
    bias,
    residual,
    out,
    o_row,  # [R]
    o_out,  # [C]
    M,
    N,
    GELU: tl.constexpr,
):
    """Scales, bias, GELU and residual, then the one rounding."""
    m_row, m_out = o_row < M, o_out < N
    mask = m_row[:, None] & m_out[None, :]
    o_y = o_row.to(tl.int64)[:, None] * N + o_out[None, :]
    b_y = b_sum.to(tl.float32) * tl.load(scales + o_row, mask=m_row, other=0.0)[:, None]
    b_y = b_y * tl.load(scale + o_out, mask=m_out, other=0.0)[None, :]
    if bias is not None:
        b_y += tl.load(bias + o_out, mask=m_out, other=0.0).to(tl.float32)[None, :]
    if GELU != "none":
        b_y = gelu(b_y, GELU == "exact")
    if residual is not None:
        b_y += tl.load(residual + o_y, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + o_y, b_y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def quantized_linear_kernel(
    numbers,  # [M, K] int8 or fp8, contiguous
    weight,  # [N, K] as numbers, contiguous
    scales,  # [M] fp32, of the rows
    scale,  # [N] fp32, of the outputs
    bias,  # [N] as out, or None
    residual,  # [M, N] as out, or None
    out,  # [M, N] fp32, bf16 or fp16
    partials,  # [PARTS, M, N] int32 or fp32; None with one part
    M,
    N,
    K,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    EVEN: tl.constexpr,  # whether K is a multiple of DEPTH
    SUMS: tl.constexpr,  # tl.int32 or tl.float32
    PROMOTED: tl.constexpr,  # of fp8: inputs that tensor cores add up before their sum is added in fp32
    GELU: tl.constexpr,
):
    tiles = tl.cdiv(M, ROWS)
    i_row, i_out, i_part = tl.program_id(0) % tiles, tl.program_id(0) // tiles, tl.program_id(1)
    o_row, o_out = i_row * ROWS + tl.arange(0, ROWS), i_out * COLUMNS + tl.arange(0, COLUMNS)
    o_k = tl.arange(0, DEPTH)
    left = numbers + tl.minimum(o_row, M - 1).to(tl.int64)[:, None] * K + o_k[None, :]
    right = weight + tl.minimum(o_out, N - 1).to(tl.int64)[None, :] * K + o_k[:, None]
    steps = tl.cdiv(K, DEPTH)
    per_part = tl.cdiv(steps, PARTS)
    b_sum = tl.zeros((ROWS, COLUMNS), dtype=SUMS)
    for step in range(i_part * per_part, tl.minimum(steps, (i_part + 1) * per_part)):
        first = step * DEPTH
        if EVEN:
            b_left, b_right = tl.load(left + first), tl.load(right + first)
        else:
            m_k = o_k < K - first
            b_left = tl.load(left + first, mask=m_k[None, :], other=0.0)
            b_right = tl.load(right + first, mask=m_k[:, None], other=0.0)
        b_sum = tl.dot(b_left, b_right, b_sum, input_precision="ieee", max_num_imprecise_acc=PROMOTED, out_dtype=SUMS)
    if PARTS == 1:
        _finish(b_sum, scales, scale, bias, residual, out, o_row, o_out, M, N, GELU)
    else:
        o_y = (i_part.to(tl.int64) * M + o_row[:, None]) * N + o_out[None, :]
        tl.store(partials + o_y, b_sum, mask=(o_row < M)[:, None] & (o_out < N)[None, :])


@triton.jit
def add_parts_kernel(
    partials,  # [PARTS, M, N] int32 or fp32
    scales,  # [M] fp32
    scale,  # [N] fp32
    bias,  # [N] as out, or None
    residual,  # [M, N] as out, or None
    out,  # [M, N] fp32, bf16 or fp16
    M,
    N,
    PARTS: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK outputs of a row."""
    i_row = tl.program_id(0)
    o_row, o_out = i_row + tl.arange(0, 1), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_out = o_out < N
    b_sum = tl.load(partials + i_row.to(tl.int64) * N + o_out, mask=m_out, other=0)
    for part in tl.static_range(1, PARTS):
        b_sum += tl.load(partials + (part * M + i_row).to(tl.int64) * N + o_out, mask=m_out, other=0)
    _finish(b_sum[None, :], scales, scale, bias, residual, out, o_row, o_out, M, N, GELU)
