"""What the engine may do differently: choices of speed and memory for the same codes, and what it computes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from hqtvae_fast.hardware import default_dtype
from hqtvae_fast.ops.kernels.skinny_linear.reference import QUANTIZED
from hqtvae_fast.ops.kernels.skinny_linear.triton import DEPENDENT_CAPABILITY, FP8_CAPABILITY


@dataclass(frozen=True)
class EngineOptions:
    """``graphs``: capture each batch size's work as CUDA graphs and replay them; None: on a GPU. ``tables``: compute
    what depends on a code or a class alone once (:class:`hqtvae_fast.engine.cache.StepTables`). ``fused_draw``: where
    neither top-k nor top-p is set, draw inside the head's product, its logits never stored
    (:func:`hqtvae_fast.ops.draw_from_head`). ``overlap``: draw a batch while the one before it is decoded
    (:mod:`hqtvae_fast.engine.streams`); None: on a GPU. ``dependent_launch``: Hopper's programmatic dependent launch:
    skinny products, and the whole head where it is one kernel, begin to fetch their weights while the kernel before
    them runs. ``skip_query``: leave out the queries of the head's first pass, whose one position sees itself alone.
    ``tf32``: multiply fp32 numbers as TF32."""

    graphs: bool | None = None
    tables: bool = False
    fused_draw: bool = False
    overlap: bool | None = None
    dependent_launch: bool = False
    skip_query: bool = False
    tf32: bool = False

    @property
    def fused(self) -> bool:
        """Whether any is set that the fused step has and the model's own modules have not."""
        return self.tables or self.fused_draw or self.dependent_launch or self.skip_query


def check_options(options: EngineOptions, device: torch.device) -> None:
    """ValueError where this device cannot do what was asked for."""
    if not options.dependent_launch:
        return
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < DEPENDENT_CAPABILITY:
        got = device if found is None else ".".join(map(str, found))
        raise ValueError(f"dependent_launch: expected a GPU of compute capability 9.0 or above (Hopper); got {got}")


# ------------------------------------------------------------------------------------------------------------ precision

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
    if quantization is not None and quantization not in QUANTIZED:
        raise ValueError(f"quantization: expected {', '.join(map(repr, QUANTIZED))} or None; got {quantization!r}")
    if precision.tf32 and device.type != "cuda":
        raise ValueError(f"dtype: tf32 is how an NVIDIA GPU multiplies fp32; expected a CUDA device, got {device}")
    if quantization == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        least, found = (".".join(map(str, c)) for c in (FP8_CAPABILITY, torch.cuda.get_device_capability(device)))
        raise ValueError(f"quantization: fp8 expects compute capability {least} or above; got {found}: int8 runs there")
