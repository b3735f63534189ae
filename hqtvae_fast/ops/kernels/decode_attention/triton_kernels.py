"""One query a head against a static cache: a Triton kernel. Import only where Triton is wanted.

One program is one head of one image. It adds the bias to its query, key and value, writes key and value into the cache,
starts an online softmax with the new position, which it has in registers, and takes the cached ones BLOCK at a time;
the number of those is read from memory, so that the loop is as long as the cache is full. Bytes, a head: 4 E of the
projection and output, 2 E written and 2 E start read: at 64 positions of 64 bf16 values 16 KB; a batch of 1 is 24
programs, latency and nothing else, a batch of 256 reads 100 MB a layer. Scores, exponentials and sums are fp32; two
values a multiply-add is far below what an H100 needs to be kept busy, so no tensor cores.

Over a cache in 8 bits (:mod:`.int8`) a position of a head is 2 E + 8 bytes of numbers and scales, not 4 E of bf16: a
step of S at batch 512 reads, of 31.5 positions in the mean over 64 steps, 632 MB in its 12 layers and not 1,189 MB. At
an H100's 3.35 TB/s a layer takes 16 us and not 30, in which a quarter of a multiprocessor can issue some 1,200
instructions for each program that it has. So instructions are what is left to save (counted in the machine code for
sm_90, warps times instructions of a program, mean over 64 steps): 2,843 of the kernel for bf16 by four warps, and 1,143
by one; as that one is, 1,354 for 8 bits and 5,463 by four warps. Hence one warp, of which 4 lanes have a position's 64
numbers, so that 8 positions are 8 softmaxes side by side, which meet once at the end: 1,228, of them 180 conversions.
The new position, rounded as it is stored, comes to them last, so that a lane rounds 2 values and not 16. Prediction,
not measured: 20 us a layer at batch 512 where bf16 takes 42 (33 by one warp), 17 ms (10 ms) less for a batch.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents


@triton.jit
def _new(qkv, bias, o_e, m_e, i_b, i_h, part, H, E):
    """Query (part 0), key (1) or value (2) with its bias, rounded as the cache rounds it: fp32 [WIDTH]."""
    b = tl.load(qkv + ((i_b * 3 + part) * H + i_h) * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    if bias is not None:
        b += tl.load(bias + (part * H + i_h) * E + o_e, mask=m_e, other=0.0).to(tl.float32)
    return b.to(qkv.dtype.element_ty).to(tl.float32)


@triton.jit(do_not_specialize_on_alignment=["start"])  # which differs by step
def decode_attention_kernel(
    qkv,  # [B, 3, H, E] fp32, bf16 or fp16
    bias,  # [3, H, E] as qkv, or None
    keys,  # [B, H, C, E] as qkv
    values,  # likewise
    start,  # [] int64: cached positions
    out,  # [B, H, E] as qkv
    scale,
    H,
    E,
    C,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    TRIGGER: tl.constexpr,  # whether the next kernel may be launched to wait beside this one
):
    if TRIGGER:
        gdc_launch_dependents()
    i_b, i_h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0) % H
    o_e = tl.arange(0, WIDTH)
    m_e = o_e < E
    length = tl.load(start).to(tl.int32)
    keys += (i_b * H + i_h) * C * E
    values += (i_b * H + i_h) * C * E
    b_q = _new(qkv, bias, o_e, m_e, i_b, i_h, 0, H, E)
    b_k = _new(qkv, bias, o_e, m_e, i_b, i_h, 1, H, E)
    b_y = _new(qkv, bias, o_e, m_e, i_b, i_h, 2, H, E)
    tl.store(keys + length * E + o_e, b_k.to(keys.dtype.element_ty), mask=m_e)
    tl.store(values + length * E + o_e, b_y.to(values.dtype.element_ty), mask=m_e)
    top, total = tl.sum(b_q * b_k, axis=0) * scale, 1.0
    for i_first in range(0, length, BLOCK):
        o_position = i_first + tl.arange(0, BLOCK)
        mask = (o_position < length)[:, None] & m_e[None, :]
        o_cache = o_position[:, None] * E + o_e[None, :]
        b_cached = tl.load(keys + o_cache, mask=mask, other=0.0).to(tl.float32)
        b_scores = tl.where(o_position < length, tl.sum(b_cached * b_q[None, :], axis=1) * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(b_scores, axis=0))
        shrink = tl.exp(top - new_top)
        b_p = tl.exp(b_scores - new_top)
        b_cached = tl.load(values + o_cache, mask=mask, other=0.0).to(tl.float32)
        b_y = b_y * shrink + tl.sum(b_p[:, None] * b_cached, axis=0)
        total = total * shrink + tl.sum(b_p, axis=0)
        top = new_top
    tl.store(out + (i_b * H + i_h) * E + o_e, (b_y / total).to(out.dtype.element_ty), mask=m_e)


# --------------------------------------------------------------------------------------------------- a cache in 8 bits


@triton.jit
def _in_8_bits(b):
    """A vector's whole numbers and its scale, fp32, bit for bit as the definition has them. The largest of the bits of
    |b| is that of the values, a NaN's or an infinity's where there is one, which the difference makes NaN; between
    product and sum is a comparison, for a fused multiply-add would round once; and from 1.5 * 2^23 on fp32 has no
    fractions, so that adding it rounds to the nearest, ties to even."""
    top = tl.max(b.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0).to(tl.float32, bitcast=True)
    scale = top * (1 / 127) + (top - top)
    scale = tl.where(scale < 1.1754943508222875e-38, 0.0, scale)
    inverse = tl.where(scale > 0, tl.div_rn(1.0, scale), 0.0)
    return (tl.minimum(tl.maximum(b * inverse, -127.0), 127.0) + 12582912.0) - 12582912.0, scale


@triton.jit(do_not_specialize_on_alignment=["start"])
def decode_attention_int8_kernel(
    qkv,  # [B, 3, H, E] fp32, bf16 or fp16
    bias,  # [3, H, E] as qkv, or None
    keys,  # [B, H, C, E] int8
    values,  # likewise
    scales,  # [2, B, H, C] fp32
    start,  # [] int64: cached positions
    out,  # [B, H, E] as qkv
    scale,
    H,
    E,
    C,
    ROWS: tl.constexpr,  # positions that a slot takes at once
    SLOTS: tl.constexpr,  # softmaxes side by side
    WIDTH: tl.constexpr,
    TRIGGER: tl.constexpr,  # as above
):
    if TRIGGER:
        gdc_launch_dependents()
    i_b, i_h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_e = tl.arange(0, WIDTH)
    m_e = o_e < E
    length = tl.load(start).to(tl.int32)
    keys += (i_b * H + i_h) * (C * E)
    values += (i_b * H + i_h) * (C * E)
    scales += (i_b * H + i_h) * C
    value_scales = scales + tl.num_programs(0).to(tl.int64) * (H * C)
    b_q = _new(qkv, bias, o_e, m_e, i_b, i_h, 0, H, E)
    b_k, k_scale = _in_8_bits(_new(qkv, bias, o_e, m_e, i_b, i_h, 1, H, E))
    b_v, v_scale = _in_8_bits(_new(qkv, bias, o_e, m_e, i_b, i_h, 2, H, E))
    tl.store(scales + length, k_scale)
    tl.store(value_scales + length, v_scale)
    tl.store(keys + length * E + o_e, b_k.to(tl.int8), mask=m_e)
    tl.store(values + length * E + o_e, b_v.to(tl.int8), mask=m_e)
    new = tl.sum(b_q * b_k, axis=0) * (k_scale * scale)
    b_top = tl.zeros([SLOTS], dtype=tl.float32) + new
    b_total = tl.zeros([SLOTS], dtype=tl.float32)
    b_y = tl.zeros([SLOTS, WIDTH], dtype=tl.float32)
    o_position = tl.arange(0, ROWS)[:, None] * SLOTS + tl.arange(0, SLOTS)[None, :]
    o_cache = o_position[:, :, None] * E + o_e[None, None, :]
    for i_first in range(0, length, ROWS * SLOTS):
        m_position = o_position < length - i_first
        mask = m_position[:, :, None] & m_e[None, None, :]
        b_keys = tl.load(keys + o_cache, mask=mask, other=0)
        b_values = tl.load(values + o_cache, mask=mask, other=0)
        b_scores = tl.sum(b_keys.to(tl.float32) * b_q[None, None, :], axis=2)
        b_scores *= tl.load(scales + o_position, mask=m_position, other=0.0) * scale
        b_scores = tl.where(m_position, b_scores, float("-inf"))
        b_new_top = tl.maximum(b_top, tl.max(b_scores, axis=0))
        b_shrink = tl.exp(b_top - b_new_top)
        b_p = tl.exp(b_scores - b_new_top[None, :])
        b_total = b_total * b_shrink + tl.sum(b_p, axis=0)
        b_p *= tl.load(value_scales + o_position, mask=m_position, other=0.0)
        b_y = b_y * b_shrink[:, None] + tl.sum(b_p[:, :, None] * b_values.to(tl.float32), axis=0)
        b_top = b_new_top
        keys += ROWS * SLOTS * E
        values += ROWS * SLOTS * E
        scales += ROWS * SLOTS
        value_scales += ROWS * SLOTS
    top = tl.maximum(tl.max(b_top, axis=0), new)
    b_p, p = tl.exp(b_top - top), tl.exp(new - top)
    total = tl.sum(b_total * b_p, axis=0) + p
    b_out = tl.sum(b_y * b_p[:, None], axis=0) + (p * v_scale) * b_v
    tl.store(out + (i_b * H + i_h) * E + o_e, (b_out / total).to(out.dtype.element_ty), mask=m_e)
