"""One query a head against a static cache: a Triton kernel. Import only where Triton is wanted.

One program is one head of one image. It adds the bias to its query, key and value, writes key and value into the cache,
starts an online softmax with the new position, which it has in registers, and takes the cached ones BLOCK at a time;
the number of those is read from memory, so that the loop is as long as the cache is full. Bytes, a head: 4 E of the
projection and output, 2 E written and 2 E start read: at 64 positions of 64 bf16 values 16 KB; a batch of 1 is 24
programs, latency and nothing else, a batch of 256 reads 100 MB a layer. Scores, exponentials and sums are fp32; two
values a multiply-add is far below what an H100 needs to be kept busy, so no tensor cores.
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
