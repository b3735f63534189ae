"""Seeds: which 64-bit number each image's noise is keyed with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# 2^64 over the golden ratio: multiples of it are spread as evenly as can be over 64 bits, so (seed, i) and (seed', i')
# never meet for seeds below 2^40 and fewer than 2^20 images.
_STRIDE = 0x9E3779B97F4A7C15


def image_seeds(seed: int | Sequence[int], count: int) -> Tensor:
    """Keys of images 0..count-1, int64 [count] on the CPU.

    From one ``seed``, image i gets seed + i * 2^64/phi modulo 2^64: image 0 has the seed itself. From a sequence, one
    integer an image, each is taken as it is, so a single picture of a run can be drawn again alone. Raises ValueError
    on a sequence of another length or an integer that does not fit 64 bits.
    """
    if isinstance(seed, int):
        values = [seed + index * _STRIDE for index in range(count)]
        check = [seed]
    else:
        values = check = [int(value) for value in seed]
        if len(values) != count:
            raise ValueError(f"seed: expected an int, or {count} of them (one an image); got {len(values)}")
    for value in check:
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"seed: expected an integer that fits 64 bits; got {value}")
    return torch.tensor([_wrap(value) for value in values], dtype=torch.int64, device="cpu")


def _wrap(value: int) -> int:
    """The signed 64-bit integer with the same low 64 bits."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
