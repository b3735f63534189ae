"""Temperature, top-k, top-p and the draw in one Triton kernel. Import only where Triton is wanted.

**Method.** One program a row, held in registers. Nothing is sorted. The k-th largest logit is the largest r for which
at least k logits are >= r; the edge of top-p is the largest r for which the mass of the logits >= r reaches p. Both are
found bit by bit: read as an unsigned number, a float's bits have the float's order once the sign is dealt with (radix
selection with digits of one bit), so a bf16 row takes 16 rounds of one comparison and one sum, an fp32 row 32. Why not
a histogram of larger digits: the first digit of most logits is one of three or four, so a histogram's additions meet in
the same bins. Among codes of exactly the edge's value top-p keeps the first few by index: a cumulative count, only
computed where there is more than one.

Then the draw: argmax of logit + Gumbel noise, the same noise bit for bit as :mod:`.noise` makes on a CPU. Its two
logarithms are 60 operations, fixed; so all codes are scored with the hardware's logarithm first, and if only one comes
near the best (nearly always), it is the winner by the exact scores as well. Else those that do are scored exactly. Near
is within MARGIN + 2^-21 of the best, twice what the rough score may be off: its exponential variate by 5e-6 of itself
(a series below 2^-5, above it lg2.approx with an absolute error of 2^-22), the logarithm of that by 2^-22 of up to 33,
and the exact one and both sums by roundings: less than 3e-5 and 2^-22 of the score together.

Every operation of the exact noise is rounded by itself, so the kernel must be compiled with enable_fp_fusion=False,
which keeps ptxas from joining a product and a sum; divisions are div_rn, as Triton's own `/` on fp32 is approximate.

With guidance a program reads two rows of logits and combines them as :func:`reference.guided_logits` does, in fp32,
whose bits the filters then go by: one launch as without.

Parameters, seeds and the step are read from device memory, so that a captured graph can be replayed with others.

**Cost.** A row is read once: 16 KB of bf16 for K = 8192, 8 bytes are written. Arithmetic for each code: 2 instructions
a round and filter, 15 of Philox, 20 of the rough noise: about 70 in bf16 with one filter, 0.6 M for a row, which one of
an H100's multiprocessors (128 lanes, 1.7 GHz) takes 2.6 us to issue. The rows of a step are spread over all of them.

Rounding: the temperature divides in fp32 as the reference does; top-p's masses are fp32 sums in a fixed tree, so that a
code at the very edge (within 1e-6 of p) may be kept here and not there.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from hqtvae_fast.ops.kernels.sample_logits import noise

_WEYL_0, _WEYL_1 = (tl.constexpr(word) for word in noise.WEYL)
_MULTIPLIER_0, _MULTIPLIER_1 = (tl.constexpr(word) for word in noise.MULTIPLIERS)
_ROUNDS = tl.constexpr(noise.ROUNDS)
_LN_POLYNOMIAL = tl.constexpr(noise.LN_POLYNOMIAL)
_LN_TERMS = tl.constexpr(len(noise.LN_POLYNOMIAL))
_LN2_HIGH, _LN2_LOW = tl.constexpr(noise.LN2_HIGH), tl.constexpr(noise.LN2_LOW)
_SQRT_HALF_BITS = tl.constexpr(noise.SQRT_HALF_BITS)

MARGIN, RELATIVE_MARGIN = tl.constexpr(6e-5), tl.constexpr(2.0**-21)
_LN2, _THIRD, _FLT_MAX = tl.constexpr(0.6931471805599453), tl.constexpr(1 / 3), tl.constexpr(3.4028234663852886e38)


@triton.jit
def _ln(x):
    """As :func:`noise._ln`, operation by operation."""
    bits = x.to(tl.int32, bitcast=True) - _SQRT_HALF_BITS
    exponent = (bits >> 23).to(tl.float32)
    f = ((bits & 0x7FFFFF) + _SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    p = f * _LN_POLYNOMIAL[0] + _LN_POLYNOMIAL[1]
    for term in tl.static_range(2, _LN_TERMS):
        p = p * f + _LN_POLYNOMIAL[term]
    tail = p * f * square + exponent * _LN2_LOW - square * 0.5
    return tail + f + exponent * _LN2_HIGH


@triton.jit
def gumbel(words):
    """As :func:`noise.gumbel`, operation by operation; uint32 words."""
    v = tl.minimum((words.to(tl.float32) + 0.5) * 2.0**-32, 1.0 - 2.0**-24)
    w = 1.0 - v
    exponential = tl.math.div_rn(v - (1.0 - w), w) - _ln(w)
    return -_ln(exponential)


@triton.jit
def _log2(x, INTERPRET: tl.constexpr):
    """One instruction: absolute error 2^-22 within [1/2, 2], relative outside."""
    if INTERPRET:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def rough_gumbel(words, INTERPRET: tl.constexpr):
    """:func:`gumbel` within 2e-5."""
    v = tl.minimum((words.to(tl.float32) + 0.5) * 2.0**-32, 1.0 - 2.0**-24)
    series = v * (v * (v * (v * 0.25 + _THIRD) + 0.5) + 1.0)  # -ln(1 - v) to v^4
    exponential = tl.where(v < 2.0**-5, series, _log2(1.0 - v, INTERPRET) * -_LN2)
    return _log2(exponential, INTERPRET) * -_LN2


@triton.jit
def _argmax_of_exact_scores(b_scaled, words, INTERPRET: tl.constexpr):
    """Of b_scaled + gumbel(words), ties to the lowest index."""
    b_rough = b_scaled + rough_gumbel(words, INTERPRET)
    best = tl.max(b_rough, axis=0)
    b_near = b_rough >= best - (MARGIN + RELATIVE_MARGIN * tl.minimum(tl.abs(best), _FLT_MAX))
    if tl.sum(b_near.to(tl.int32), axis=0) == 1:
        found = tl.argmax(b_near.to(tl.int32), axis=0, tie_break_left=True)
    else:
        b_exact = tl.where(b_near, b_scaled + gumbel(words), float("-inf"))
        found = tl.argmax(b_exact, axis=0, tie_break_left=True)
    return found


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """As :func:`noise.philox`, on uint32 of one shape."""
    first = tl.full(c0.shape, _MULTIPLIER_0, tl.uint32)
    second = tl.full(c0.shape, _MULTIPLIER_1, tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        high_0, low_0 = tl.umulhi(c0, first), c0 * first
        high_1, low_1 = tl.umulhi(c2, second), c2 * second
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0 += tl.full(c0.shape, _WEYL_0, tl.uint32)
        k1 += tl.full(c0.shape, _WEYL_1, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def random_words(seed, step, position, CODES: tl.constexpr):
    """Words of indices 0..CODES-1, uint32 [CODES]; int64 scalars."""
    c0 = tl.arange(0, CODES // 4).to(tl.uint32)
    zero = tl.zeros((CODES // 4,), tl.uint32)
    c1, c2 = zero + position.to(tl.uint32), zero + step.to(tl.uint32)
    k0, k1 = zero + seed.to(tl.uint32), zero + (seed >> 32).to(tl.uint32)
    c0, c1, c2, c3 = philox(c0, c1, c2, zero, k0, k1)
    # [.., 2, 2] with index 2 i + j from (c0 c1; c2 c3)
    return tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (CODES,))


@triton.jit
def _keys(b_x, BITS: tl.constexpr):
    """Numbers in [0, 2^BITS) in the order of the floats; -0 and 0 are one. fp32 has 32 bits, bf16 and fp16 16."""
    b_x = tl.where(b_x == 0.0, 0.0, b_x)  # -0
    if BITS == 16:
        bits = b_x.to(tl.int16, bitcast=True).to(tl.int32)
        return (bits ^ ((bits >> 31) & 0x7FFF)) + 0x8000
    else:
        bits = b_x.to(tl.int32, bitcast=True)
        return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _edge(b_keys, b_weights, target, BITS: tl.constexpr):
    """The largest key for which the weights of keys at or above it sum to ``target`` or more."""
    edge = tl.zeros([], b_keys.dtype)
    bit = tl.full([], 1 << (BITS - 1), b_keys.dtype)
    for _ in range(BITS):
        reached = tl.sum(tl.where(b_keys >= (edge | bit), b_weights, 0.0), axis=0) >= target
        edge = tl.where(reached, edge | bit, edge)
        bit = bit >> 1
    return edge


@triton.jit
def _keep_top_p(b_scaled, b_keys, top_p, BITS: tl.constexpr):
    """-inf where top-p drops a code: sorted by logit, equal ones by index, all after the first that reaches p."""
    top = tl.max(b_scaled, axis=0)
    b_weights = tl.where(b_scaled == top, 1.0, tl.exp(b_scaled - top))  # an infinite top is no NaN
    target = top_p * tl.sum(b_weights, axis=0)
    edge = _edge(b_keys, b_weights, target, BITS)
    value = tl.max(tl.where(b_keys == edge, b_scaled, float("-inf")), axis=0)
    b_above, b_tied = b_scaled > value, b_scaled == value
    keep = b_above | b_tied
    if tl.sum(b_tied.to(tl.int32), axis=0) > 1:
        mass = tl.sum(tl.where(b_above, b_weights, 0.0), axis=0)
        each = tl.max(tl.where(b_tied, b_weights, 0.0), axis=0)
        b_before = tl.cumsum(b_tied.to(tl.int32), axis=0) - 1
        keep = b_above | (b_tied & ((b_before == 0) | (mass + b_before.to(tl.float32) * each < target)))
    return tl.where(keep, b_scaled, float("-inf"))


@triton.jit(
    do_not_specialize_on_alignment=["out", "step", "position", "temperature", "top_k", "top_p"]
)  # which differs by step
def draw_kernel(
    logits,  # [B, G, K] fp32, bf16 or fp16; GUIDED: [2 B, G, K], conditions shown and withheld
    out,  # [B, G] int64; GUIDED: [2 B, G], where both rows of an image get its code
    invalid,  # [] bool, set where a row holds NaN
    seeds,  # [B] int64
    step,  # int64, [B] or one for all (stride 0)
    position,  # likewise: of each row's first draw
    temperature,  # [] fp32
    top_k,  # [] int64; K or more: no filter
    top_p,  # [] fp32; 1 or more: no filter
    guidance,  # fp32, [B] or one for all (stride 0); read where GUIDED
    B,
    G,
    K,
    stride_b,
    stride_g,
    stride_out_b,
    stride_out_g,
    stride_step,
    stride_position,
    stride_guidance,
    BITS: tl.constexpr,
    CODES: tl.constexpr,
    INTERPRET: tl.constexpr,
    GUIDED: tl.constexpr,
):
    i_b, i_g = tl.program_id(0).to(tl.int64) // G, tl.program_id(0) % G
    o_k = tl.arange(0, CODES)
    b_x = tl.load(logits + i_b * stride_b + i_g * stride_g + o_k, mask=o_k < K, other=float("-inf"))
    b_raw = b_x.to(tl.float32)
    if GUIDED:
        withheld = logits + (i_b + B) * stride_b + i_g * stride_g
        b_withheld = tl.load(withheld + o_k, mask=o_k < K, other=float("-inf")).to(tl.float32)
        scale = tl.load(guidance + i_b * stride_guidance)
        b_guided = b_withheld + scale * (b_raw - b_withheld)
        b_guided = tl.where(b_raw == b_withheld, b_raw, b_guided)
        b_raw = tl.where(scale == 1.0, b_raw, b_guided)
    out += i_b * stride_out_b + i_g * stride_out_g
    k, p = tl.load(top_k), tl.load(top_p)
    if tl.max((b_raw != b_raw).to(tl.int32), axis=0) > 0:
        tl.store(invalid, tl.full([], 1, tl.int1))
        b_raw = tl.where(b_raw != b_raw, float("-inf"), b_raw)
    if k == 1:
        drawn = tl.argmax(b_raw, axis=0, tie_break_left=True)
    else:
        b_scaled = tl.math.div_rn(b_raw, tl.zeros((CODES,), tl.float32) + tl.load(temperature))
        b_keys = _keys(b_raw if GUIDED else b_x, BITS)
        if k < K:
            edge = _edge(b_keys, tl.full((CODES,), 1.0, tl.float32), k.to(tl.float32), BITS)
            least = tl.max(tl.where(b_keys == edge, b_scaled, float("-inf")), axis=0)
            b_scaled = tl.where(b_scaled >= least, b_scaled, float("-inf"))
        if p < 1.0:
            b_scaled = _keep_top_p(b_scaled, b_keys, p, BITS)
        first = tl.load(position + i_b * stride_position) + i_g
        words = random_words(tl.load(seeds + i_b), tl.load(step + i_b * stride_step), first, CODES)
        drawn = _argmax_of_exact_scores(b_scaled, words, INTERPRET)
    drawn = tl.minimum(drawn, K - 1).to(tl.int64)
    tl.store(out, drawn)
    if GUIDED:
        tl.store(out + B * stride_out_b, drawn)
