"""What the engine may do differently: its variants in a plan, of speed and memory for the same codes, and what it
computes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from hqtvae_fast.hardware import default_dtype
from hqtvae_fast.ops.kernels.skinny_linear.reference import QUANTIZED
from hqtvae_fast.ops.kernels.skinny_linear.triton import DEPENDENT_CAPABILITY, FP8_CAPABILITY

Overlap = Literal["off", "on", "priority"]
QuantizedProducts = Literal["but_down", "all"]
KV = Literal["int8"]


@dataclass(frozen=True)
class EngineOptions:
    """One way to run a batch: a plan's variant of the engine, in the words of its text (:meth:`read`).

    ``captured``: capture the work of a batch size as CUDA graphs and replay them ("captured", "uncaptured"); None: on a
    GPU. ``modules``: the model's own modules draw, which have none of the next nine. ``tables``: compute what depends
    on a code or a class alone once (:class:`hqtvae_fast.engine.cache.StepTables`). ``fused_draw``: where neither top-k
    nor top-p is set, draw inside the head's product, its logits never stored (:func:`hqtvae_fast.ops.draw_from_head`).
    ``whole_head``: both passes and draws of a step in one operation (:class:`hqtvae_fast.engine.step.WholeHead`).
    ``dependent_launch``: Hopper's programmatic dependent launch: skinny products, and the whole head, begin to fetch
    their weights while the kernel before them runs. ``skip_query``: leave out the queries of the head's first pass,
    whose one position sees itself alone. ``streamed_rows``: on a GPU skinny products, ours, take up to 128 rows and not
    16, so that biases and GELU are no kernels there either. ``fused_norm``: skinny products normalise their own rows
    and add the residual to their results, so that a block is five kernels and not seven. ``quantized_products``: of
    layers quantized to 8 bits, products that are not skinny round their rows to 8 bits too
    (:func:`hqtvae_fast.ops.quantized_linear`), which moves predictions further than 16 bits do: "all", or "but_down",
    all but the last of each block, whose rows come from a GELU and lose the most by it; None: none. ``kv``: "int8"
    keeps the body's keys and values in 8 bits (:class:`hqtvae_fast.engine.cache.KVCache`), which moves predictions a
    little; None: in the model's dtype. ``overlap``: draw a batch while the one before it is decoded
    (:mod:`hqtvae_fast.engine.streams`), with "priority" to the drawing; None: on a GPU. ``chunk``: images decoded at
    once; None: as memory and caches like. ``ahead``: batches issued before the oldest one is waited for, where they
    overlap; None: 1. More of them keep a GPU at work while a consumer is slow with one batch. ``cudnn_benchmark``:
    cuDNN times its algorithms at a shape's first use. ``threads``: of a CPU, at most so many; None: torch's. Not in the
    text, for it is of the dtype: ``tf32``, multiply fp32 numbers as TF32."""

    captured: bool | None = None
    modules: bool = False
    tables: bool = False
    fused_draw: bool = False
    whole_head: bool = False
    dependent_launch: bool = False
    skip_query: bool = False
    streamed_rows: bool = False
    fused_norm: bool = False
    quantized_products: QuantizedProducts | None = None
    kv: KV | None = None
    overlap: Overlap | None = None
    chunk: int | None = None
    ahead: int | None = None
    cudnn_benchmark: bool = False
    threads: int | None = None
    tf32: bool = False

    @classmethod
    def read(cls, text: str, *, tf32: bool = False) -> EngineOptions:
        """Of words such as "dependent_launch, skip_query, overlap=priority, chunk=128", in any order; "": all as they
        are by themselves. ValueError on others."""
        found: dict[str, Any] = {}
        for word in filter(None, map(str.strip, text.split(","))):
            name, value = _read_word(word)
            if name in found:
                raise ValueError(f"engine: expected {name} once; got {text!r}")
            found[name] = value
        options = cls(**found, tf32=tf32)
        if options.modules and options.fused:
            raise ValueError(f"engine: expected 'modules' without what the fused step alone has; got {text!r}")
        return options

    def __str__(self) -> str:
        words = [] if self.captured is None else ["captured" if self.captured else "uncaptured"]
        words += [name for name in _FLAGS if getattr(self, name)]
        words += [f"{name}={value}" for name in _VALUES if (value := getattr(self, name)) is not None]
        return ", ".join(words)

    @property
    def fused(self) -> bool:
        """Whether any is set that the fused step has and the model's own modules have not."""
        return any(getattr(self, name) for name in _STEP)

    def captures(self, device: torch.device) -> bool:
        return device.type == "cuda" if self.captured is None else self.captured

    def overlaps(self, device: torch.device) -> bool:
        return device.type == "cuda" if self.overlap is None else self.overlap != "off"


_CAPTURED = {"captured": True, "uncaptured": False}
_SWITCHES = ("tables", "fused_draw", "whole_head", "dependent_launch", "skip_query", "streamed_rows", "fused_norm")
_STEP = (*_SWITCHES, "quantized_products", "kv")
_FLAGS = ("modules", *_SWITCHES, "cudnn_benchmark")
_NAMED: dict[str, tuple[str, ...]] = {
    "quantized_products": get_args(QuantizedProducts),
    "kv": get_args(KV),
    "overlap": get_args(Overlap),
}
_NUMBERS = ("chunk", "ahead", "threads")
_VALUES = (*_NAMED, *_NUMBERS)


def _read_word(word: str) -> tuple[str, Any]:
    """One word of an engine's text, as a field's name and value."""
    name, _, value = (part.strip() for part in word.partition("="))
    if word in _CAPTURED:
        return "captured", _CAPTURED[word]
    if word in _FLAGS:
        return word, True
    if value in _NAMED.get(name, ()):
        return name, value
    if name in _NUMBERS and value.isdecimal() and int(value) > 0:
        return name, int(value)
    named = (f"{each}={'|'.join(values)}" for each, values in _NAMED.items())
    known = (*_CAPTURED, *_FLAGS, *named, *(f"{number}=N" for number in _NUMBERS))
    raise ValueError(f"engine: expected some of {', '.join(known)}; got {word!r}")


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
