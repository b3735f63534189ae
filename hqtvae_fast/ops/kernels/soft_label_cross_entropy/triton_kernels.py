"""Soft-label cross-entropy on tensor cores: Triton kernels. Import only where Triton is wanted.

**Method.** A score is s = 2 z.e - |e|^2, a label p = softmax(s / tau). Neither scores nor labels are ever in memory: a
program holds one tile of ROWS x CODES of them in registers. `forward_kernel` takes of each row of its tile, x a logit,

    top_x = max x,  sum_x = sum exp(x - top_x),  top_s = max s,  sum_s = sum exp((s - top_s) / tau),
    dot = sum exp((s - top_s) / tau) (x - top_x)

which the launcher brings to the largest tops over all tiles, as an online softmax does; loss = log sum_x - dot / sum_s.
Tops and sums are kept apart rather than as one log of a sum: at |e|^2 around 1000 and tau = 0.1 rounding the latter to
fp32 would alone shift a row's labels by 1e-3. `backward_kernel` computes the scores again and writes
(exp(x - top_x) / sum_x - exp((s - top_s) / tau) / sum_s) * grad / N. Nothing is added by atomics: the result does not
depend on the order in which programs run.

**Cost.** 2 N K C FLOP a kernel. Memory: the logits once a kernel, their gradient once; for N = 4096, C = 1024, K = 8192
in fp32 the forward pass reads 0.18 GB for 69 GFLOP, 0.05 ms of an H100's bandwidth beside 0.42 ms of its arithmetic
(three TF32 products each), so arithmetic is the floor. Operands come from the second-level cache: (128 + 64) rows of C
in fp32 for 128 x 64 x C x 2 FLOP, 21 FLOP a byte.

**Schedule.** One tile a program, and no loop over tiles of codes: Triton needs 255 registers a thread for one even with
tiles of 64 x 64, and spills 128 x 128 (2.8 KB a thread on sm_80), as what the exponentials and the running values need
stays live through the product. Without, 128 x 64 takes at most 128 registers, so two blocks share a multiprocessor and
one reads its logits and takes exponentials while the other multiplies. GROUP tiles of rows meet one
tile of codes before the next comes: what is live at one time is a few tiles of rows, whose z stays in the cache, while
the codebook streams past.

**Precision.** fp32 inputs are multiplied as "tf32x3" (big and small TF32 parts of each factor, small by small left out:
2^-21 of a product's size) because the tensor cores know no fp32 and plain "tf32" would leave 2^-11: at |z| |e| = 1000
an error up to 1 in a score, a factor of e in a label at tau = 1. tf32x3 adds up chunks of WIDTH outside the tensor
cores, whose own additions truncate, and so errs about as fp32 does; and labels depend on scores smoothly: this is no
search, whose answer would flip. bf16 and fp16 inputs fit TF32's 11 bits, so that their products are exact in "tf32".
They are widened as they are loaded: everything from there on is fp32.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _position(N, K, ROWS: tl.constexpr, CODES: tl.constexpr, GROUP: tl.constexpr):
    """This program's tile of rows and of codes: GROUP tiles of rows meet one of codes before the next one comes."""
    tiles = tl.cdiv(K, CODES)
    i_group, i_inside = tl.program_id(0) // (GROUP * tiles), tl.program_id(0) % (GROUP * tiles)
    members = min(tl.cdiv(N, ROWS) - i_group * GROUP, GROUP)
    return i_group * GROUP + i_inside % members, i_inside // members


@triton.jit
def _scores(
    z,  # at the tile's first row
    codebook,  # at the tile's first code
    norms,  # likewise
    o_rows,  # [ROWS]
    o_codes,  # [CODES]
    m_rows,
    m_codes,
    C,
    stride_z,
    stride_codebook,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """2 z.e - |e|^2 of a tile, fp32 [ROWS, CODES]: C is walked WIDTH at a time. Codes beyond the last score -inf."""
    b_product = tl.zeros((ROWS, CODES), dtype=tl.float32)
    for start in range(0, C, WIDTH):
        o_width = start + tl.arange(0, WIDTH)
        m_width = o_width < C
        b_z = tl.load(
            z + o_rows[:, None] * stride_z + o_width[None, :], mask=m_rows[:, None] & m_width[None, :], other=0.0
        )
        b_codes = tl.load(
            codebook + o_codes[None, :] * stride_codebook + o_width[:, None],
            mask=m_codes[None, :] & m_width[:, None],
            other=0.0,
        )
        b_product = tl.dot(b_z.to(tl.float32), b_codes.to(tl.float32), b_product, input_precision=PRECISION)
    b_norms = tl.load(norms + o_codes, mask=m_codes, other=0.0)
    return tl.where(m_codes[None, :], 2.0 * b_product - b_norms[None, :], float("-inf"))


@triton.jit
def forward_kernel(
    logits,  # [N, K] fp32, bf16 or fp16
    z,  # [N, C] fp32, bf16 or fp16
    codebook,  # [K, C] as z
    norms,  # [K] fp32, squared
    partials,  # [5, tiles of codes, N] fp32: top_x, sum_x, top_s, sum_s, dot
    inverse_temperature,
    N,
    K,
    C,
    stride_logits,
    stride_z,
    stride_codebook,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The five numbers of one tile's rows."""
    i_rows, i_tile = _position(N, K, ROWS, CODES, GROUP)
    o_rows, o_codes = tl.arange(0, ROWS), tl.arange(0, CODES)
    first_row, first_code = i_rows.to(tl.int64) * ROWS, i_tile.to(tl.int64) * CODES
    m_rows, m_codes = first_row + o_rows < N, first_code + o_codes < K
    b_s = _scores(
        z + first_row * stride_z,
        codebook + first_code * stride_codebook,
        norms + first_code,
        *(o_rows, o_codes, m_rows, m_codes, C, stride_z, stride_codebook),
        *(ROWS, CODES, WIDTH, PRECISION),
    )
    m_tile = m_rows[:, None] & m_codes[None, :]
    o_tile = o_rows[:, None].to(tl.int64) * stride_logits + o_codes[None, :]
    logits += first_row * stride_logits + first_code
    b_x = tl.load(logits + o_tile, mask=m_tile, other=float("-inf")).to(tl.float32)
    b_top_x = tl.max(b_x, axis=1)
    # A row whose logits are all -inf in this tile is no such row elsewhere, and -inf - -inf would make it NaN.
    b_fall = b_x - tl.where(b_top_x == float("-inf"), 0.0, b_top_x)[:, None]
    b_sum_x = tl.sum(tl.exp(b_fall), axis=1)
    b_top_s = tl.max(b_s, axis=1)
    b_p = tl.exp((b_s - b_top_s[:, None]) * inverse_temperature)
    b_sum_s = tl.sum(b_p, axis=1)
    b_dot = tl.sum(b_p * tl.where(m_tile, b_fall, 0.0), axis=1)  # 0 * -inf would be NaN where there is no code
    step = tl.cdiv(K, CODES) * tl.cast(N, tl.int64)
    partials += i_tile * tl.cast(N, tl.int64) + first_row + o_rows
    tl.store(partials, b_top_x, mask=m_rows)
    tl.store(partials + step, b_sum_x, mask=m_rows)
    tl.store(partials + 2 * step, b_top_s, mask=m_rows)
    tl.store(partials + 3 * step, b_sum_s, mask=m_rows)
    tl.store(partials + 4 * step, b_dot, mask=m_rows)


@triton.jit
def backward_kernel(
    grad,  # [] fp32, of the loss
    logits,  # [N, K] fp32, bf16 or fp16
    z,  # [N, C] fp32, bf16 or fp16
    codebook,  # [K, C] as z
    norms,  # [K] fp32, squared
    statistics,  # [4, N] fp32: top_x, sum_x, top_s, sum_s
    out,  # [N, K] as the logits, contiguous
    inverse_temperature,
    N,
    K,
    C,
    stride_logits,
    stride_z,
    stride_codebook,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of the gradient."""
    i_rows, i_tile = _position(N, K, ROWS, CODES, GROUP)
    o_rows, o_codes = tl.arange(0, ROWS), tl.arange(0, CODES)
    first_row, first_code = i_rows.to(tl.int64) * ROWS, i_tile.to(tl.int64) * CODES
    m_rows, m_codes = first_row + o_rows < N, first_code + o_codes < K
    b_s = _scores(
        z + first_row * stride_z,
        codebook + first_code * stride_codebook,
        norms + first_code,
        *(o_rows, o_codes, m_rows, m_codes, C, stride_z, stride_codebook),
        *(ROWS, CODES, WIDTH, PRECISION),
    )
    statistics += first_row + o_rows
    b_top_x = tl.load(statistics, mask=m_rows, other=0.0)
    b_sum_x = tl.load(statistics + N, mask=m_rows, other=1.0)
    b_top_s = tl.load(statistics + 2 * N, mask=m_rows, other=0.0)
    b_sum_s = tl.load(statistics + 3 * N, mask=m_rows, other=1.0)
    m_tile = m_rows[:, None] & m_codes[None, :]
    o_tile = o_rows[:, None].to(tl.int64) * stride_logits + o_codes[None, :]
    b_x = tl.load(logits + first_row * stride_logits + first_code + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    scale = tl.load(grad).to(tl.float32) / N
    b_q = tl.exp(b_x - b_top_x[:, None]) * (scale / b_sum_x)[:, None]
    b_p = tl.exp((b_s - b_top_s[:, None]) * inverse_temperature) * (scale / b_sum_s)[:, None]
    o_out = o_rows[:, None].to(tl.int64) * K + o_codes[None, :]
    tl.store(out + first_row * K + first_code + o_out, (b_q - b_p).to(out.dtype.element_ty), mask=m_tile)
