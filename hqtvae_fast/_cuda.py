"""The kernels of csrc/cuda, from whichever of two places has them; nothing is looked for before the first question.

1. ``hqtvae_fast/_C*.so``, compiled when the package was installed (setup.py): operators ``hqtvae_fast_cuda::*`` that
   check what they get.
2. CuPy, whose NVRTC compiles the same sources on first use and keeps the result on disk (:mod:`hqtvae_fast._nvrtc`).

Both take the same tensors in the same order. ``HQTVAE_CUDA_LOADER`` (``extension`` or ``cupy``) insists on one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

VARIABLE = "HQTVAE_CUDA_LOADER"
PACKAGE = Path(__file__).parent
LEAST_CAPABILITY = (8, 0)
DEPENDENT_CAPABILITY = (9, 0)
"""Of programmatic dependent launches."""

Operator = Callable[..., None]


@dataclass(frozen=True)
class Kernels:
    """``origin``: where they come from, in words. ``operator(name)``: a launcher, see csrc/cuda/bindings.cpp.
    ``dependent``: whether its launches can be dependent ones."""

    origin: str
    operator: Callable[[str], Operator]
    dependent: bool


@cache
def load() -> tuple[Kernels | None, str]:
    """The kernels and "", or None and the reason why there are none."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", *LOADERS):
        return None, f"{VARIABLE}: expected one of {', '.join(LOADERS)}; got {wanted!r}"
    reasons = []
    for name, loader in LOADERS.items():
        if wanted in ("", name):
            kernels, reason = loader()
            if kernels is not None:
                return kernels, ""
            reasons.append(reason)
    return None, "; ".join(reasons)


def operator(name: str) -> Operator:
    """A launcher by name; a RuntimeError gives the reason where there is none."""
    kernels, reason = load()
    if kernels is None:
        raise RuntimeError(f"CUDA kernels: {reason}")
    return kernels.operator(name)


def origin() -> str:
    kernels, reason = load()
    return f"none ({reason})" if kernels is None else kernels.origin


def why_not(*inputs: Tensor | None) -> str | None:
    """None where the kernels can take these tensors, else the reason."""
    tensors = [tensor for tensor in inputs if tensor is not None]
    for tensor in tensors:
        if tensor.device.type != "cuda":
            return f"expected tensors on a CUDA device; got {tensor.device}"
    kernels, reason = load()
    if kernels is None:
        return reason
    for tensor in tensors:
        if torch.cuda.is_available() and torch.cuda.get_device_capability(tensor.device) < LEAST_CAPABILITY:
            major, minor = torch.cuda.get_device_capability(tensor.device)
            return f"expected compute capability 8.0 or above; got {major}.{minor}"
    return None


def why_not_dependent(x: Tensor) -> str | None:
    """None where a kernel over ``x`` can be launched while the one before it still runs, else the reason."""
    kernels, reason = load()
    if kernels is None:
        return reason
    if not kernels.dependent:
        return f"expected kernels compiled when installed for a dependent launch; got {kernels.origin}"
    found = torch.cuda.get_device_capability(x.device)
    if found < DEPENDENT_CAPABILITY:
        return f"expected compute capability 9.0 or above for a dependent launch; got {found[0]}.{found[1]}"
    return None


def _extension() -> tuple[Kernels | None, str]:
    found = sorted(PACKAGE.glob("_C*.so"))
    if not found:
        return None, "not compiled: installing found no nvcc or no CUDA build of torch, or BUILD_CUDA=0"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return None, f"{found[0].name} cannot be loaded: {error}"
    operators = torch.ops.hqtvae_fast_cuda
    return Kernels(f"{found[0].name}, compiled when installed", lambda name: getattr(operators, name), True), ""


def _cupy() -> tuple[Kernels | None, str]:
    from hqtvae_fast import _nvrtc

    reason = _nvrtc.why_not()
    if reason is not None:
        return None, reason
    return Kernels("CuPy, compiled on first use", lambda name: getattr(_nvrtc, name), False), ""


LOADERS: dict[str, Callable[[], tuple[Kernels | None, str]]] = {"extension": _extension, "cupy": _cupy}
