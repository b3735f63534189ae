"""What every launcher of Triton kernels asks: can they run here, on which device, and are they only interpreted."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRITON_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def why_not(*inputs: Tensor | None) -> str | None:
    """None where kernels can take these tensors, else the reason. None among them: one that is absent."""
    first = inputs[0]
    if first is not None and first.is_cpu and first.dtype in DTYPES and not interpreted():  # asked at every call
        return "expected tensors on a CUDA device (or TRITON_INTERPRET=1); got cpu"
    tensors = [tensor for tensor in inputs if tensor is not None]
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            return f"expected fp32, bf16 or fp16; got {tensor.dtype}"
        if tensor.device.type != "cuda" and not interpreted():
            return f"expected tensors on a CUDA device (or TRITON_INTERPRET=1); got {tensor.device}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
    if not torch.cuda.is_available():  # fake tensors, which say how a GPU would be used
        return None
    if device is not None and torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        return f"expected compute capability 8.0 or above, where tensor cores take bf16 and TF32; got {major}.{minor}"
    return None


def capability_at_least(x: Tensor, least: tuple[int, int]) -> bool:
    """Whether the GPU that ``x`` is on can do what came with this compute capability; so can the interpreter and, where
    there is no GPU to ask, a fake one."""
    return not (x.is_cuda and torch.cuda.is_available()) or torch.cuda.get_device_capability(x.device) >= least


def dependents(x: Tensor) -> bool:
    """Whether kernels here may tell that the next one can be launched (programmatic dependent launch, from compute
    capability 9.0 on). Telling costs an instruction, and means nothing to a kernel that is launched as usual."""
    return x.is_cuda and torch.cuda.is_available() and capability_at_least(x, (9, 0))


MULTIPROCESSORS = {80: 108, 90: 132}
"""Of an A100 and an H100, where a kernel is only compiled for their architecture."""


def multiprocessors(device: torch.device) -> int:
    """How many ``device`` has: a launcher's measure of how many programs are enough. An H100's, where there is no GPU
    to ask: of a fake one, and in the interpreter."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return MULTIPROCESSORS[90]
    return _multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, as it read when they were defined."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
    """Launch a Triton kernel on the current device. ``options``: its constants, and Triton's own (num_warps, ...).

    A product and a sum become one multiply-add, rounded once, unless ``enable_fp_fusion=False`` is among them. That is
    always said: what Triton does where nothing is said changes with its version.
    """
    kernel[grid](*arguments, **{"enable_fp_fusion": True, **options})


@functools.cache
def triton_version() -> str:
    """Of the Triton that is installed, as the ahead-of-time budgets name it: "3.7"."""
    return ".".join(importlib.metadata.version("triton").split(".")[:2])


def power_of_2(number: int) -> int:
    """The least power of 2 that is not below ``number``."""
    return 1 << (number - 1).bit_length()


def rows(x: Tensor) -> Tensor:
    """[..., D] as [M, D] with each row's values next to each other; a slice of one token's positions is not copied."""
    x_MD = x.reshape(-1, x.shape[-1])
    return x_MD if x_MD.stride(1) == 1 else x_MD.contiguous()


def dense(*vectors: Tensor | None) -> tuple[Tensor | None, ...]:
    """With values next to each other, as kernels read vectors; copied only where they are not."""
    return tuple(None if vector is None else vector.contiguous() for vector in vectors)


@dataclass(frozen=True)
class Warps:
    """A tile of a kernel that is given by its warps alone."""

    warps: int


def by_warps(*numbers: int) -> dict[str, Warps]:
    """Such tiles by name: "4-warps"."""
    return {f"{number}-warps": Warps(number) for number in numbers}


def row_warps(width: int) -> int:
    """Warps for a program that holds a row in registers: at most 16 values a thread."""
    return min(16, max(1, power_of_2(width) // 512))
