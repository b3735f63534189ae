"""The head's product and the draw in one pass, no logits stored: Triton kernels. Import only where Triton is wanted.

**Method.** A program makes one tile of the product, ROWS x CODES, in registers, rounds it to the dtype in which it
would have been stored, adds the noise of :mod:`hqtvae_fast.ops.kernels.sample_logits.noise`, and keeps the best score
of each row and its code: 8 bytes in place of CODES logits. A second kernel takes the best over the tiles. Both take the
lowest index among equal scores, and tiles lie in the order of their codes, so the result does not depend on the order
of arrival. This works because without top-k and top-p the draw is a maximum and nothing else: no code depends on
another one's logit.

Noise is scored roughly first, as in the draw from stored logits (which see for the margin). What leaves a tile must be
exact, since it is compared with other tiles' bests: where each row has one code near its best, only that one's noise is
made exactly, a vector of ROWS; else the tile's.

**Cost.** Bytes: the weight once, x, and 16 bytes a row and tile (12.5% of what writing and reading bf16 logits takes
with 32 codes a tile, 3% with 128). FLOP: 2 M D K, and about 75 operations a code and row for the noise, as the separate
draw has; here they run between a tile's products and not after all of them.

Every operation of the exact noise is rounded by itself: compile with enable_fp_fusion=False.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from hqtvae_fast.ops.kernels.sample_logits.triton_kernels import MARGIN, RELATIVE_MARGIN, gumbel, philox, rough_gumbel

_FLT_MAX = tl.constexpr(3.4028234663852886e38)


@triton.jit
def random_words(seeds, steps, positions, first, ROWS: tl.constexpr, CODES: tl.constexpr):
    """Words of indices first..first+CODES-1, uint32 [ROWS, CODES]; int64 [ROWS], ``first`` a multiple of 4."""
    zero = tl.zeros((ROWS, CODES // 4), tl.uint32)
    c0 = zero + (first // 4 + tl.arange(0, CODES // 4)).to(tl.uint32)[None, :]
    c1, c2 = zero + positions.to(tl.uint32)[:, None], zero + steps.to(tl.uint32)[:, None]
    k0, k1 = zero + seeds.to(tl.uint32)[:, None], zero + (seeds >> 32).to(tl.uint32)[:, None]
    c0, c1, c2, c3 = philox(c0, c1, c2, zero, k0, k1)
    return tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (ROWS, CODES))


@triton.jit
def _best_of_tile(b_scaled, words, CODES: tl.constexpr, INTERPRET: tl.constexpr):
    """The largest of b_scaled + gumbel(words) in each row, and its column, the lowest of equal ones."""
    b_rough = b_scaled + rough_gumbel(words, INTERPRET)
    best = tl.max(b_rough, axis=1)
    near = best - (MARGIN + RELATIVE_MARGIN * tl.minimum(tl.abs(best), _FLT_MAX))
    b_near = b_rough >= near[:, None]
    if tl.max(tl.sum(b_near.to(tl.int32), axis=1), axis=0) == 1:
        found = tl.argmax(b_near.to(tl.int32), axis=1, tie_break_left=True)
        b_own = tl.arange(0, CODES)[None, :] == found[:, None]
        word = tl.sum(tl.where(b_own, words, 0).to(tl.uint32), axis=1)
        score = tl.max(tl.where(b_own, b_scaled, float("-inf")), axis=1) + gumbel(word)
    else:
        b_exact = tl.where(b_near, b_scaled + gumbel(words), float("-inf"))
        found = tl.argmax(b_exact, axis=1, tie_break_left=True)
        score = tl.max(b_exact, axis=1)
    return score, found


@triton.jit(do_not_specialize_on_alignment=["step", "position", "temperature"])  # which differs by step
def tiles_kernel(
    x,  # [M, D] fp32, bf16 or fp16, contiguous; row b G + g
    weight,  # [K, D] as x, contiguous
    scores,  # [tiles, M] fp32
    codes,  # [tiles, M] int32
    invalid,  # [] bool, set where a row holds NaN
    seeds,  # [B] int64
    step,  # int64, [B] or one for all (stride 0)
    position,  # likewise: of each image's first draw
    temperature,  # [] fp32
    M,
    G,
    K,
    D,
    stride_step,
    stride_position,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    i_tile = tl.program_id(1)
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_code = i_tile * CODES + tl.arange(0, CODES)
    m_row, m_code = o_row < M, o_code < K
    b_y = tl.zeros((ROWS, CODES), tl.float32)
    for i_d in range(tl.cdiv(D, BD)):
        o_d = i_d * BD + tl.arange(0, BD)
        m_d = o_d < D
        b_x = tl.load(x + o_row.to(tl.int64)[:, None] * D + o_d[None, :], mask=m_row[:, None] & m_d[None, :], other=0.0)
        b_w = tl.load(
            weight + o_code.to(tl.int64)[None, :] * D + o_d[:, None], mask=m_code[None, :] & m_d[:, None], other=0.0
        )
        if INTERPRET:  # the interpreter multiplies bf16 as bits
            b_x, b_w = b_x.to(tl.float32), b_w.to(tl.float32)
        b_y = tl.dot(b_x, b_w, b_y, input_precision=PRECISION)
    b_y = b_y.to(x.dtype.element_ty).to(tl.float32)  # as it would have been stored
    b_wrong = (b_y != b_y) & m_row[:, None]  # a padded row's zeros make NaN of infinite weights
    if tl.max(tl.max(b_wrong.to(tl.int32), axis=1), axis=0) > 0:
        tl.store(invalid, tl.full([], 1, tl.int1))
    b_scaled = tl.math.div_rn(b_y, tl.zeros((ROWS, CODES), tl.float32) + tl.load(temperature))
    b_scaled = tl.where((b_y != b_y) | (o_code >= K)[None, :], float("-inf"), b_scaled)
    i_b = tl.minimum(o_row, M - 1) // G
    positions = tl.load(position + i_b * stride_position) + o_row % G
    words = random_words(
        tl.load(seeds + i_b), tl.load(step + i_b * stride_step), positions, i_tile * CODES, ROWS, CODES
    )
    score, found = _best_of_tile(b_scaled, words, CODES, INTERPRET)
    o_best = i_tile.to(tl.int64) * M + o_row
    tl.store(scores + o_best, score, mask=m_row)
    tl.store(codes + o_best, i_tile * CODES + found, mask=m_row)


@triton.jit(do_not_specialize_on_alignment=["out"])  # which differs by step
def settle_kernel(
    scores,  # [tiles, M] fp32
    codes,  # [tiles, M] int32
    out,  # [B, G] int64
    tiles,
    M,
    G,
    stride_out_b,
    stride_out_g,
    TILES: tl.constexpr,
):
    """One row: the best tile's code, of equal ones the first's."""
    i_m = tl.program_id(0)
    o_tile = tl.arange(0, TILES)
    b_score = tl.load(scores + o_tile.to(tl.int64) * M + i_m, mask=o_tile < tiles, other=float("-inf"))
    best = tl.argmax(b_score, axis=0, tie_break_left=True)
    code = tl.load(codes + best.to(tl.int64) * M + i_m)
    tl.store(out + (i_m // G).to(tl.int64) * stride_out_b + (i_m % G) * stride_out_g, code.to(tl.int64))
