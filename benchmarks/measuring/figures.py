"""How figures are written in tables and pictures."""

from __future__ import annotations

import numpy as np

DIGITS = 4
NO_FLOOR = "no floor ‡"


def plain(value: float, digits: int = DIGITS) -> str:
    """With so many digits that count and no power of ten: 31,853 and 0.000001886. No digit before the point is lost."""
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return np.format_float_positional(value, precision=digits, unique=False, fractional=False, trim="-")


def of_floor(floor: float, seconds: float) -> str:
    """The share of a time that its floor is. A floor above the time is none, and a share above 1 says nothing."""
    return NO_FLOOR if floor > seconds else f"{floor / seconds:.1%}"
