"""Numbers as users give them: Python's, NumPy's and torch's, read in one place. Errors: ``name: expected X; got Y``."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hqtvae_fast.fields import shown


def is_sequence(value: Any) -> bool:
    """Whether it holds several values: a list, a tuple, or a NumPy array or tensor of one dimension or more."""
    return isinstance(value, (list, tuple, range)) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0)


def entries(value: Any) -> list[Any]:
    """What is in a sequence, tensors and arrays as Python's numbers (nested where they have several dimensions)."""
    return value.tolist() if isinstance(value, (Tensor, np.ndarray)) else list(value)


def integer(name: str, value: Any, low: int | None = None, high: int | None = None, *, also: str = "") -> int:
    """An integer of Python, NumPy or torch, from ``low`` to ``high``. ValueError on anything else, 2.0 and True among
    it; ``also``: what the message says may be given besides."""
    try:
        if isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) is torch.bool or is_sequence(value):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or (low is not None and found < low) or (high is not None and found > high):
        raise ValueError(f"{name}: expected an integer{_range(low, high)}{also}; got {shown(value)}")
    return found


def positive(name: str, value: Any) -> int:
    """An integer of at least 1."""
    return integer(name, value, 1)


def _range(low: int | None, high: int | None) -> str:
    if low is None:
        return ""
    return f" of at least {low}" if high is None else f" from {low} to {high}"


def real(name: str, value: Any, wanted: str = "a number") -> float:
    """A real number of Python, NumPy or torch, but not NaN. ValueError on others; ``wanted``: for its message."""
    number = value.item() if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0 else value
    if isinstance(number, (bool, np.bool_)) or not isinstance(number, numbers.Real) or math.isnan(number):
        raise ValueError(f"{name}: expected {wanted}; got {shown(value)}")
    return float(number)


def integers(name: str, value: Any, wanted: str = "integers") -> Tensor:
    """Integers of any width, in a tensor, an array or (nested) lists, as an int64 tensor on their device.

    Widened before anything is compared with them: in uint8, 1024 would be 0. ValueError on floats, booleans and what is
    no array of numbers; ``wanted``: for its message.
    """
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(_widest(value), device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name}: expected {wanted}; got {shown(value)}") from None
    # An empty list is a tensor of floats.
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype is torch.bool):
        raise ValueError(f"{name}: expected {wanted}; got {shown(found)}")
    return found.to(torch.int64)


def _widest(value: Any) -> Any:
    """Lists as they are, arrays of NumPy's integers as int64: what is beyond is negative there, out of any range."""
    if isinstance(value, (list, tuple)) and any(isinstance(entry, (Tensor, np.ndarray)) for entry in value):
        value = np.stack([np.asarray(entry) for entry in value])
    return value.astype(np.int64) if isinstance(value, np.ndarray) and value.dtype.kind in "iu" else value
