"""Torch's global modes, which callers set for code of their own, and what keeps ours the same under all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


@contextmanager
def single_precision() -> Iterator[None]:
    """Modules made inside, which take torch's default dtype, are in fp32 whatever that is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def no_autocast() -> Iterator[None]:
    """Every product in the dtype of its own inputs, on any device."""
    casting = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with ExitStack() as stack:
        for kind in casting:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def inference() -> Iterator[None]:
    """Without gradients and without autocast: how all of the engine runs."""
    with torch.inference_mode(), no_autocast():
        yield


def ordinary(value: Tensor) -> Tensor:
    """The same numbers in a tensor that a caller may compute gradients with: inference mode's are none."""
    if not value.is_inference():
        return value
    with torch.inference_mode(False):
        return value.clone()


def is_traced() -> bool:
    """Whether what runs is being compiled, exported or traced: then values must not be looked at."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()
