"""Counter-based noise, defined once, bit for bit: Philox4x32-10 words and the Gumbel variates made from them.

The word for (seed, step, position, index) is lane ``index % 4`` of Philox with key (seed low, seed high) and counter
(index // 4, position, step, 0). A draw therefore depends on its own coordinates alone: not on the batch it is part of,
nor on what was drawn before it, nor on the device. Everything after the words is IEEE single precision in which each
operation is rounded by itself (no fused multiply-add, no library logarithm), so that a kernel can give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four counter words and two key words, each int64 in [0, 2^32), to four words. Broadcasts."""
    k0, k1 = key
    shape = torch.broadcast_shapes(*(word.shape for word in (*counter, *key)))
    c0, c1, c2, c3 = (word.expand(shape) for word in counter)
    for _ in range(ROUNDS):
        # int64 products wrap modulo 2^64, which leaves both 32-bit halves right. A word is cut to 32 bits just before
        # it is multiplied or returned; until then its upper half may hold anything. In place, since the CPU's time
        # here is the time to write temporaries.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (p0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + WEYL[0]) & _MASK, (k1 + WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def random_words(seeds_B: Tensor, step: Tensor | int, position: Tensor | int, count: int) -> Tensor:
    """32-bit words for indices 0..count-1: int64 [B, count].

    ``seeds_B`` int64 [B], any value; ``step`` and ``position`` are non-negative integers or int64 [B].
    """
    blocks_N = torch.arange((count + 3) // 4, dtype=torch.int64, device=seeds_B.device)[None]
    zero = torch.zeros((), dtype=torch.int64, device=seeds_B.device)
    words = philox(
        (blocks_N, _column(position, zero), _column(step, zero), zero),
        ((seeds_B & _MASK)[:, None], ((seeds_B >> 32) & _MASK)[:, None]),
    )
    return torch.stack(words, dim=2).flatten(1)[:, :count]


def _column(value: Tensor | int, zero: Tensor) -> Tensor:
    return value[:, None] if isinstance(value, Tensor) else zero + value


def gumbel(words: Tensor) -> Tensor:
    """-ln(-ln(1 - v)) with v = (word + 1/2) / 2^32, in float32: within (-2.9, 22.9).

    The winners of a race have large values, which come from small v; those are where 32 bits resolve finely, hence
    1 - v (as log1p) and not v inside the logarithm.
    """
    v = (words.to(torch.float32) + 0.5) * 2.0**-32
    v = v.clamp_max(1.0 - 2.0**-24)
    w = 1.0 - v
    # ln(1 - v) = ln(w) + (v's part that rounding w lost) / w, to first order.
    exponential = (v - (1.0 - w)) / w - _ln(w)
    return -_ln(exponential)


# ln(1 + f) = f - f^2/2 + f^3 * P(f) on sqrt(1/2) - 1 <= f < sqrt(2) - 1: Cephes' single-precision polynomial.
LN_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LN2_HIGH = 0.693359375  # 355/512: its product with an exponent is exact
LN2_LOW = -2.12194440e-4
SQRT_HALF_BITS = 0x3F3504F3


def _ln(x: Tensor) -> Tensor:
    """Natural logarithm of positive normal float32, within 2 units in the last place; fixed sequence of operations."""
    bits = x.view(torch.int32) - SQRT_HALF_BITS  # so that the mantissa falls in [sqrt(1/2), sqrt(2))
    exponent = (bits >> 23).to(torch.float32)
    f = bits.bitwise_and_(0x7FFFFF).add_(SQRT_HALF_BITS).view(torch.float32) - 1.0
    square = f * f
    p = (f * LN_POLYNOMIAL[0]).add_(LN_POLYNOMIAL[1])
    for coefficient in LN_POLYNOMIAL[2:]:
        p.mul_(f).add_(coefficient)
    tail = p.mul_(f).mul_(square).add_(exponent * LN2_LOW).sub_(square.mul_(0.5))
    return tail.add_(f).add_(exponent.mul_(LN2_HIGH))
