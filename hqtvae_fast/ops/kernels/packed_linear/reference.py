"""Plain rows: torch's product, which lays out what it wants in each call."""

from __future__ import annotations

from torch import Tensor


def plain(weight: Tensor, *quantized: Tensor) -> None:
    """Nothing is laid out."""
    return None
