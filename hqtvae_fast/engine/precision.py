"""What the transformer and the decoder compute in: a dtype, whether fp32 products may be TF32, and narrow weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from hqtvae_fast.hardware import default_dtype
from hqtvae_fast.ops.kernels.skinny_linear.reference import NARROW
from hqtvae_fast.ops.kernels.skinny_linear.triton import FP8_CAPABILITY

Quantization = Literal["int8", "fp8"] | None


@dataclass(frozen=True)
class Precision:
    """``tf32``: products of fp32 numbers, which tensor cores then round to 10 bits of mantissa and add up in fp32."""

    dtype: torch.dtype
    tf32: bool = False


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "tf32": Precision(torch.float32, tf32=True),
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
}


_TORCH_NAMES = {str(each.dtype).removeprefix("torch."): name for name, each in PRECISIONS.items() if not each.tf32}


def is_precision(asked: Any) -> bool:
    """Whether it names what to compute in, rather than where."""
    return isinstance(asked, torch.dtype) or (isinstance(asked, str) and (asked in PRECISIONS or asked in _TORCH_NAMES))


def read_precision(asked: Any) -> Precision:
    """Of a name in :data:`PRECISIONS`, torch's name (float32, bfloat16, float16) or dtype; ValueError on others."""
    if isinstance(asked, str) and is_precision(asked):
        return PRECISIONS[_TORCH_NAMES.get(asked, asked)]
    for precision in PRECISIONS.values():
        if asked is precision.dtype:
            return precision
    raise ValueError(f"dtype: expected one of {', '.join(PRECISIONS)} (or torch's name or dtype); got {asked!r}")


def default_precision(device: torch.device) -> Precision:
    return Precision(default_dtype(device))


def check_precision(precision: Precision, quantization: str | None, device: torch.device) -> None:
    """ValueError where this device cannot do what was asked for."""
    if quantization is not None and quantization not in NARROW:
        raise ValueError(f"quantization: expected {', '.join(map(repr, NARROW))} or None; got {quantization!r}")
    if precision.tf32 and device.type != "cuda":
        raise ValueError(f"dtype: tf32 is how an NVIDIA GPU multiplies fp32; expected a CUDA device, got {device}")
    if quantization == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        least, found = (".".join(map(str, c)) for c in (FP8_CAPABILITY, torch.cuda.get_device_capability(device)))
        raise ValueError(f"quantization: fp8 expects compute capability {least} or above; got {found}: int8 runs there")
