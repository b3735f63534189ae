"""Products of at most 128 rows with a large weight: a Triton kernel. Import only where Triton is wanted.

**Method.** The time is the time to stream the weight, so what counts is how many of its bytes are on their way at once
in how many multiprocessors. A program takes OUT outputs and a part of the inputs (split-K: an output projection has 48
tiles of 32 outputs for 132 multiprocessors), multiplies on tensor cores with the rows padded to ROWS, and writes its
sums to memory; the program that comes last to a tile adds the parts up, in the order of the parts and not of arrival,
so that the result is the same every time, and takes bias, GELU and residual along. Who is last, a counter tells, which
that program sets back to zero. With one part there is neither.

With ``norm`` the rows are normalised on their way in: each program finds their means and deviations first, from whole
rows that lie in the second-level cache, GROUP of them at a time in registers. That is ROWS x K values more a program,
and one kernel and its round trip through memory less a product.

**Cost.** Bytes: the weight once (2 bytes an element, 1 as int8 or fp8), M x K values of x a tile from the caches, and
8 bytes for each part and sum. FLOP: 2 M N K, of which the tensor cores do 2 ROWS N K: ROWS FLOP a byte of bf16.

**17 to 128 rows.** The weight is what wgmma has 64 of, the rows, padded to 32, 64 or 128, are its width. Of the
second-level cache every tile reads all of x: at 50 rows and K = 1536 154 KB beside 196 KB of weights, so that its 5.5
TB/s count as much as the memory's 3.35 do (H100), and each part of a tile 13 KB of sums twice, the last time by one
program alone. Hence few parts, and six stages of 16 KB, for one program is all that most multiprocessors have. To find
the moments of 50 rows each program would read all of x a second time, 3 to 8 us; so the product that writes them leaves
the moments of each 64 outputs, in the same order every time, and the next one reads 10 KB. Normalising takes a warp 208
instructions more than the 100 of a step of 64 inputs and 64 rows (counted, sm_90): 3,700 cycles of issue in a program
of 12 steps, within the time of its weights.

Predicted for an H100 at batch 50, by ``benchmarks.model``, never measured: q/k/v 8.4 us (cuBLAS 8.5), output 5.7 (4.5),
up 9.1 (10.6, and 2.1 for the GELU), down 10.4 (10.6), with a norm 0.8 and 1.1 more where it alone is 2.0; each kernel
less saves 1.1 of a gap. A step of 169 kernels and 1,167 us becomes one of 122 and 1,036. At 128 rows x is more of the
traffic than the weight, and the library is predicted to be faster.

**Dependent launch.** Between two kernels of a stream a multiprocessor idles for the tail of the first and the start of
the second, a microsecond or two beside the 4 to 6 that a weight of preset S takes to stream. With PREFETCH the kernel
is launched, on compute capability 9.0 or above, as soon as all programs of the one before it are running, asks for its
weight (which no kernel writes) to be brought into the 50 MB of second-level cache, and waits there for that one's
results. Nothing but weights is touched before the wait, and nothing written.

int8 and fp8 weights are widened as they are loaded, which is exact in bf16 and in fp16; the output's scale is
multiplied in at the end.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hqtvae_fast.ops.kernels.bias_gelu.triton_kernels import gelu
from hqtvae_fast.ops.kernels.skinny_linear import reference

MOMENTS_OF = tl.constexpr(reference.MOMENTS_OF)


@triton.jit
def _finish(
    b_y,  # [OUT, ROWS] fp32
    scale,
    bias,
    residual,
    added,
    out,
    moments,
    o_out,
    o_row,
    M,
    N,
    GELU: tl.constexpr,
):
    """Scale, bias, GELU and residual (with what is added to it), then the one rounding; and of what was rounded the
    moments that the next norm is made of."""
    m_out = o_out < N
    mask = m_out[:, None] & (o_row < M)[None, :]
    o_y = o_row.to(tl.int64)[None, :] * N + o_out[:, None]
    if scale is not None:
        b_y *= tl.load(scale + o_out, mask=m_out, other=0.0).to(tl.float32)[:, None]
    if bias is not None:
        b_y += tl.load(bias + o_out, mask=m_out, other=0.0).to(tl.float32)[:, None]
    if GELU != "none":
        b_y = gelu(b_y, GELU == "exact")
    if residual is not None:
        b_y += tl.load(residual + o_y, mask=mask, other=0.0).to(tl.float32)
        if added is not None:
            b_y += tl.load(added + o_out, mask=m_out, other=0.0).to(tl.float32)[:, None]
    b_y = b_y.to(out.dtype.element_ty)
    tl.store(out + o_y, b_y, mask=mask)
    if moments is not None:
        _write_moments(b_y.to(tl.float32), moments, o_out, o_row, M, N)


@triton.jit
def _write_moments(b_y, moments, o_out, o_row, M, N):
    """Means and sums of squared deviations of each 64 outputs of a row; the last may be fewer."""
    GROUPS: tl.constexpr = b_y.shape[0] // MOMENTS_OF
    o_group = tl.min(o_out, axis=0) // MOMENTS_OF + tl.arange(0, GROUPS)
    b_size = tl.minimum(tl.maximum(N - o_group * MOMENTS_OF, 0), MOMENTS_OF)
    m_in = (tl.arange(0, MOMENTS_OF)[None, :] < b_size[:, None])[:, :, None]
    b_y = tl.where(m_in, tl.reshape(b_y, (GROUPS, MOMENTS_OF, b_y.shape[1])), 0.0)
    b_mean = tl.sum(b_y, axis=1) / tl.maximum(b_size, 1)[:, None]
    b_centred = tl.where(m_in, b_y - b_mean[:, None, :], 0.0)
    o_moments = o_group[:, None] * M + o_row[None, :]
    mask = (b_size > 0)[:, None] & (o_row < M)[None, :]
    tl.store(moments + o_moments, b_mean, mask=mask)
    tl.store(moments + tl.cdiv(N, MOMENTS_OF) * M + o_moments, tl.sum(b_centred * b_centred, axis=1), mask=mask)


@triton.jit
def _prefetch(weight, o_out, first, last, N, K, LINES: tl.constexpr):
    """Ask for inputs first..last-1 of these outputs, 128 bytes at a time; past the end, for the last ones again."""
    LINE: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth
    o_k = tl.minimum(first + tl.arange(0, LINES) * LINE, tl.minimum(last, K) - 1)
    address = (weight + tl.minimum(o_out, N - 1).to(tl.int64)[:, None] * K + o_k[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _sum(b_x, b_added, INTERPRET: tl.constexpr):
    """Of rows and a vector, rounded to the rows' dtype as a sum in memory is (which the interpreter cuts off)."""
    b_sum = b_x.to(tl.float32) + b_added.to(tl.float32)
    return b_sum if INTERPRET else b_sum.to(b_x.dtype).to(tl.float32)


@triton.jit
def _statistics(
    x,
    added,
    o_row,
    M,
    K,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Mean and inverse deviation of each row, fp32 [ROWS] both."""
    o_k = tl.arange(0, WIDTH)
    m_k = o_k < K
    b_mean, b_inverse = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for first in range(0, M, GROUP):
        for i in tl.static_range(GROUP):
            b_x = tl.load(x + (first + i) * K + o_k, mask=m_k & (first + i < M), other=0.0)
            if added is not None:
                b_x = _sum(b_x, tl.load(added + o_k, mask=m_k, other=0.0), INTERPRET)
            b_x = b_x.to(tl.float32)
            mean = tl.sum(b_x, axis=0) / K
            b_centred = tl.where(m_k, b_x - mean, 0.0)
            inverse = 1.0 / tl.sqrt_rn(tl.sum(b_centred * b_centred, axis=0) / K + EPS)
            b_mean = tl.where(o_row == first + i, mean, b_mean)
            b_inverse = tl.where(o_row == first + i, inverse, b_inverse)
    return b_mean, b_inverse


@triton.jit
def _from_moments(moments, o_row, M, K, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """The same from the moments that the product before this one has left, [2, groups of 64, M]."""
    o_group = tl.arange(0, WIDTH // MOMENTS_OF)
    groups = tl.cdiv(K, MOMENTS_OF)
    mask = (o_group < groups)[:, None] & (o_row < M)[None, :]
    o_moments = o_group[:, None] * M + o_row[None, :]
    b_size = tl.minimum(tl.maximum(K - o_group * MOMENTS_OF, 0), MOMENTS_OF).to(tl.float32)[:, None]
    b_means = tl.load(moments + o_moments, mask=mask, other=0.0)
    b_squares = tl.load(moments + groups * M + o_moments, mask=mask, other=0.0)
    b_mean = tl.sum(b_size * b_means, axis=0) / K
    b_off = b_means - b_mean[None, :]
    return b_mean, 1.0 / tl.sqrt_rn(tl.sum(b_squares + b_size * b_off * b_off, axis=0) / K + EPS)


@triton.jit
def skinny_linear_kernel(
    x,  # [M, K] fp32, bf16 or fp16, contiguous
    weight,  # [N, K] as x, int8 or fp8, contiguous
    scale,  # [N] fp32, or None
    bias,  # [N] as x, or None
    residual,  # [M, N] as x, or None
    norm,  # [K] as x: the weight of a LayerNorm of x, or None
    shift,  # [K] as x: its bias, or None
    added,  # as x, or None: [K], added to x before the norm; without one [N], added to the residual
    out,  # [M, N] as x
    moments,  # [2, groups of 64, M] fp32, or None: with a norm, of what it normalises; else written, of the result
    partials,  # [parts, tiles, OUT * ROWS] fp32; unused with one part
    counters,  # [tiles] int32, zeros
    M,
    N,
    K,
    PARTS: tl.constexpr,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    BK: tl.constexpr,
    EPS: tl.constexpr,
    GROUP: tl.constexpr,  # rows of which statistics are found at a time; 0 without a norm, as the next
    WIDTH: tl.constexpr,  # a power of 2, at least K and 64
    PRECISION: tl.constexpr,
    TRIGGER: tl.constexpr,  # whether the next kernel may be launched to wait beside this one
    PREFETCH: tl.constexpr,  # lines of each output's part to ask for before the wait; 0: an ordinary launch
    INTERPRET: tl.constexpr,
):
    i_tile, i_part = tl.program_id(0), tl.program_id(1)
    o_out = i_tile * OUT + tl.arange(0, OUT)
    o_row = tl.arange(0, ROWS)
    m_out, m_row = o_out < N, o_row < M
    chunks = tl.cdiv(K, BK)
    per_part = tl.cdiv(chunks, PARTS)
    if TRIGGER:
        gdc_launch_dependents()
    if PREFETCH:
        _prefetch(weight, o_out, i_part * per_part * BK, (i_part + 1) * per_part * BK, N, K, PREFETCH)
        gdc_wait()
    if norm is not None:
        if moments is not None:
            b_mean, b_inverse = _from_moments(moments, o_row, M, K, WIDTH, EPS)
        else:
            b_mean, b_inverse = _statistics(x, added, o_row, M, K, ROWS, GROUP, WIDTH, EPS, INTERPRET)
    b_y = tl.zeros((OUT, ROWS), tl.float32)
    for i_chunk in range(i_part * per_part, tl.minimum(chunks, (i_part + 1) * per_part)):
        o_k = i_chunk * BK + tl.arange(0, BK)
        m_k = o_k < K
        b_w = tl.load(
            weight + o_out.to(tl.int64)[:, None] * K + o_k[None, :], mask=m_out[:, None] & m_k[None, :], other=0.0
        )
        b_x = tl.load(x + o_row[:, None] * K + o_k[None, :], mask=m_row[:, None] & m_k[None, :], other=0.0)
        if norm is not None:
            b_wide = b_x.to(tl.float32)
            if added is not None:
                b_wide = _sum(b_x, tl.load(added + o_k, mask=m_k, other=0.0)[None, :], INTERPRET)
            b_norm = tl.load(norm + o_k, mask=m_k, other=0.0).to(tl.float32)[None, :]
            b_shift = tl.load(shift + o_k, mask=m_k, other=0.0).to(tl.float32)[None, :]
            b_wide = (b_wide - b_mean[:, None]) * b_inverse[:, None] * b_norm + b_shift
            b_x = b_wide if INTERPRET else b_wide.to(x.dtype.element_ty)
        elif INTERPRET:  # the interpreter multiplies bf16 as bits
            b_x = b_x.to(tl.float32)
        b_y = tl.dot(b_w.to(b_x.dtype), tl.trans(b_x), b_y, input_precision=PRECISION)
    beside, left = added if norm is None else None, moments if norm is None else None
    if PARTS == 1:
        _finish(b_y, scale, bias, residual, beside, out, left, o_out, o_row, M, N, GELU)
    else:
        if ROWS > 16:  # rows that are only padding are neither written nor read
            o_part, m_part = o_row[None, :] * OUT + tl.arange(0, OUT)[:, None], m_row[None, :]
        else:
            o_part, m_part = tl.arange(0, OUT)[:, None] * ROWS + o_row[None, :], None
        step = tl.num_programs(0) * OUT * ROWS
        tl.store(partials + i_part * step + i_tile * OUT * ROWS + o_part, b_y, mask=m_part)
        tl.debug_barrier()  # all threads' sums are written before one of them counts
        arrived = tl.atomic_add(counters + i_tile, 1, sem="acq_rel", scope="gpu")
        if arrived == PARTS - 1:
            b_y = tl.zeros((OUT, ROWS), tl.float32)
            for part in tl.range(PARTS, loop_unroll_factor=4 if ROWS > 16 else 1):
                # Past the first-level cache, which is not told what other multiprocessors write.
                b_y += tl.load(partials + part * step + i_tile * OUT * ROWS + o_part, mask=m_part, cache_modifier=".cg")
            _finish(b_y, scale, bias, residual, beside, out, left, o_out, o_row, M, N, GELU)
            tl.store(counters + i_tile, 0)
