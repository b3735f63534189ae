"""Attention among at most 32 local positions: a Triton kernel. Import only where Triton is wanted.

One program is one head of one image. All keys and values that it needs lie in registers at once, [POSITIONS, WIDTH], so
a softmax is taken whole; the queries come one after the other, since four of them would leave a tensor core's tile of
16 three quarters empty. Bytes, a head: 3 T E of the projection's output in, T E out, 2 T E written to the cache and 2
start E read from it: for pass 2 of the head (T = 4, start = 1, E = 64, bf16) 3.3 KB. It is a launch with little to do,
and is there so that bias, cache and the layout of the next product need no launches of their own.

Pass 1 (T = 1, start = 0) sees itself alone: the value is copied, and the query is never loaded. So the projection may
leave it out (PARTS = 2 of 3), and need not read a third of its own weight.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents


@triton.jit
def _new(qkv, bias, o_new, o_bias, mask):
    """Values of the projection with their bias, rounded as the cache rounds them: fp32."""
    b = tl.load(qkv + o_new, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        b += tl.load(bias + o_bias, mask=mask, other=0.0).to(tl.float32)
    return b.to(qkv.dtype.element_ty).to(tl.float32)


@triton.jit
def _tile(
    qkv,
    bias,
    cache,
    o_position,
    o_e,
    i_b,
    i_h,
    part,
    H,
    E,
    C,
    START: tl.constexpr,
    T: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Keys or values of all positions, fp32 [POSITIONS, WIDTH]; new ones are written to the cache."""
    m_e = o_e < E
    m_new = (o_position >= START) & (o_position < START + T)
    o_row = ((i_b * T + o_position - START) * PARTS + part) * H * E + i_h * E
    o_bias = part * H * E + i_h * E + o_e
    mask = m_new[:, None] & m_e[None, :]
    b = _new(qkv, bias, o_row[:, None] + o_e[None, :], o_bias[None, :] + tl.zeros_like(o_position)[:, None], mask)
    if cache is not None:
        o_cache = ((i_b * H + i_h) * C + o_position)[:, None] * E + o_e[None, :]
        tl.store(cache + o_cache, b.to(cache.dtype.element_ty), mask=mask)
        if START > 0:
            m_old = (o_position < START)[:, None] & m_e[None, :]
            b += tl.load(cache + o_cache, mask=m_old, other=0.0).to(tl.float32)
    return b


@triton.jit
def local_attention_kernel(
    qkv,  # [B, T, PARTS, H, E] fp32, bf16 or fp16: queries, unless PARTS is 2, then keys and values
    bias,  # [PARTS, H, E] as qkv, or None
    keys,  # [B, H, C, E] as qkv, or None
    values,  # likewise
    out,  # [B, T, H, E] as qkv
    scale,
    H,
    E,
    C,
    START: tl.constexpr,
    T: tl.constexpr,
    PARTS: tl.constexpr,
    LEVELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    WIDTH: tl.constexpr,
    TRIGGER: tl.constexpr,  # whether the next kernel may be launched to wait beside this one
):
    if TRIGGER:
        gdc_launch_dependents()
    i_b, i_h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0) % H
    o_e = tl.arange(0, WIDTH)
    m_e = o_e < E
    o_position = tl.arange(0, POSITIONS)
    b_v = _tile(qkv, bias, values, o_position, o_e, i_b, i_h, PARTS - 1, H, E, C, START, T, PARTS)
    if START + T > 1 or keys is not None:
        b_k = _tile(qkv, bias, keys, o_position, o_e, i_b, i_h, PARTS - 2, H, E, C, START, T, PARTS)
    for i_t in tl.static_range(T):
        o_out = ((i_b * T + i_t) * H + i_h) * E + o_e
        if START + T == 1:
            b_y = tl.sum(b_v, axis=0)  # the other positions are zeros
        else:
            b_q = _new(qkv, bias, ((i_b * T + i_t) * PARTS * H + i_h) * E + o_e, i_h * E + o_e, m_e)
            b_scores = tl.sum(b_k * b_q[None, :], axis=1) * scale
            end = START + T
            if LEVELS:
                end = 1 if START + i_t < 1 else (5 if START + i_t < 5 else START + T)
                end = end if end < START + T else START + T
            b_scores = tl.where(o_position < end, b_scores, float("-inf"))
            b_p = tl.exp(b_scores - tl.max(b_scores, axis=0))
            b_y = tl.sum(b_p[:, None] * b_v, axis=0) / tl.sum(b_p, axis=0)
        tl.store(out + o_out, b_y.to(out.dtype.element_ty), mask=m_e)
