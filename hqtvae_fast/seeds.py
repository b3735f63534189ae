"""Seeds: which 64-bit number each image's noise is keyed with."""

from __future__ import annotations

import secrets
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.arguments import entries, integer, is_sequence

# 2^64 over the golden ratio: multiples of it are spread as evenly as can be over 64 bits, so (seed, i) and (seed', i')
# never meet for seeds below 2^40 and fewer than 2^20 images.
_STRIDE = 0x9E3779B97F4A7C15


_ALSO = ", a sequence of them (one an image), a torch.Generator or None"


def image_seeds(seed: Any, count: int) -> Tensor:
    """Keys of images 0..count-1, int64 [count] on the CPU.

    From one ``seed``, an integer of Python, NumPy or torch, image i gets seed + i * 2^64/phi modulo 2^64: image 0 has
    the seed itself. From a sequence, one integer an image, each is taken as it is, so a single picture of a run can be
    drawn again alone. A ``torch.Generator`` gives the one seed, and is moved on by it; None takes a fresh one from the
    system, and moves no generator on. Raises ValueError on a sequence of another length or an integer that does not
    fit 64 bits.
    """
    if is_sequence(seed):
        values = [_seed(value) for value in entries(seed)]
        if len(values) != count:
            raise ValueError(f"seed: expected an int, or {count} of them (one an image); got {len(values)}")
    else:
        first = _one_seed(seed)
        values = [first + index * _STRIDE for index in range(count)]
    return torch.tensor([_wrap(value) for value in values], dtype=torch.int64, device="cpu")


def _one_seed(seed: Any) -> int:
    if seed is None:
        return secrets.randbits(63)
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**63 - 1, (), dtype=torch.int64, device=seed.device, generator=seed))
    return _seed(seed)


def _seed(value: Any) -> int:
    found = integer("seed", value, also=_ALSO)
    if not -(2**63) <= found < 2**64:
        raise ValueError(f"seed: expected an integer that fits 64 bits; got {found}")
    return found


def _wrap(value: int) -> int:
    """The signed 64-bit integer with the same low 64 bits."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
