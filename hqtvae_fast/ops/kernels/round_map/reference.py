"""Rounding to 8 bits in plain torch: the definition, for any layout."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = 255
TINY = torch.finfo(torch.float32).tiny


class Form(NamedTuple):
    """8-bit numbers, the least and the largest that a map is rounded to."""

    dtype: torch.dtype
    low: int
    high: int


FORMS = {
    "uint8": Form(torch.uint8, 0, LEVELS),
    "int8": Form(torch.int8, LEVELS // 2 - LEVELS, LEVELS // 2),
    "fp8": Form(torch.float8_e4m3fn, -448, 448),
}


@dataclass(frozen=True)
class Rounding:
    """Numbers q of a form (:data:`FORMS`) that stand for scale * (q - zero); of fp8 ``zero`` is 0. ``scale``: one of
    fp32's, above 0."""

    form: str
    scale: float
    zero: int = 0

    @staticmethod
    def of(span: Tensor, form: str) -> Rounding:
        """``span`` fp32 [2] on the CPU: the least and the largest number that are not cut off, or 0 where that is
        beyond. Whole numbers use all 256 for it; fp8, which is as fine on either side of 0, its largest for the end
        that is further away."""
        least, largest = span.tolist()
        low, high = min(0.0, least), max(0.0, largest)
        if form == "fp8":
            return Rounding(form, _as_fp32(max(-low, high) / FORMS[form].high))
        scale = _as_fp32((high - low) / LEVELS)
        return Rounding(form, scale, FORMS[form].low + min(LEVELS, round(-low / scale)))

    def check(self) -> None:
        """ValueError unless it is one."""
        if self.form not in FORMS:
            raise ValueError(f"rounding: expected a form of {', '.join(FORMS)}; got {self.form!r}")
        _, low, high = FORMS[self.form]
        if not (isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"rounding: expected a scale above 0; got {self.scale}")
        if not low <= self.zero <= high or (self.form == "fp8" and self.zero):
            raise ValueError(f"rounding: expected a zero among {self.form}'s numbers; got {self.zero}")


def _as_fp32(scale: float) -> float:
    return float(torch.tensor(max(scale, TINY), dtype=torch.float32, device="cpu"))


def round_map(x: Tensor, residual: Tensor | None, shift: Tensor | None, form: str, scale: float, zero: int) -> Tensor:
    """As :func:`hqtvae_fast.ops.kernels.round_map.round_map`."""
    total = x if residual is None else x + residual
    if shift is not None:
        total = (total + shift[:, None, None]).to(x.dtype)
    dtype, low, high = FORMS[form]
    numbers = total.float() * (1.0 / scale)
    if dtype.is_floating_point:
        return numbers.nan_to_num_(0.0, high, low).clamp_(low, high).to(dtype)
    return numbers.round_().add_(zero).nan_to_num_(zero, high, low).clamp_(low, high).to(dtype)
