"""The kernels of csrc/cuda where no extension was compiled: CuPy has NVRTC compile them, launches and caches them.

Each function takes the tensors of the operator of the same name in csrc/cuda/bindings.cpp; what calls them
(:mod:`hqtvae_fast.ops`) has checked them. Launches go to torch's current stream and neither allocate nor wait, once a
kernel has been compiled: before a graph is captured, everything must have run once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGE = Path(__file__).parent
FOLDERS = (PACKAGE / "_cuda_sources", PACKAGE.parent / "csrc/cuda")
"""Of the sources: as installed, and as they lie in a checkout."""
OPTIONS = ("--std=c++20", "-default-device")  # NVRTC takes a generic lambda for a host function without the second
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
THREADS = 256
STORED = ("bf16", "int8", "fp8")
"""How the matrices of the prediction head may be, as its kernels' names have it."""
HEAD_SLOT_BYTES, HEAD_FIXED_BYTES = {"bf16": 4624, "int8": 4368, "fp8": 4368}, 37520
"""Shared memory of the prediction head's kernels: of a slot of the ring, and beside the ring."""


def why_not() -> str | None:
    """None where the sources can be compiled and launched, else the reason."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (extras cuda12, cuda13)"
    if torch.version.cuda is None:
        return f"CuPy: expected a CUDA build of torch beside it; got torch {torch.__version__}"
    major = torch.version.cuda.partition(".")[0]
    if (wheel := _cupy_wheel()) not in (None, f"cupy-cuda{major}x"):  # it would compile with torch's NVRTC
        return f"CuPy: expected cupy-cuda{major}x beside torch's CUDA {torch.version.cuda}; got {wheel}"
    if not torch.cuda.is_available():
        return "CuPy: expected a CUDA device and its driver, which it compiles and launches with; torch finds none"
    if not any(folder.is_dir() for folder in FOLDERS):
        return f"the sources are not in {FOLDERS[0]}"
    return None


def _cupy_wheel() -> str | None:
    """The wheel that CuPy was installed from, which names its CUDA; None of one that was built here."""
    owners = importlib.metadata.packages_distributions().get("cupy", [])
    return next((name.lower() for name in owners if name.lower().startswith("cupy-cuda")), None)


def source(name: str) -> str:
    """``<name>.cu`` as one text, each of our headers in the place where it is first included. CuPy's cache on disk goes
    by this text alone, so that a change of a header is a change of the key."""
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    seen: set[str] = set()

    def read(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        text = (folder / file).read_text().replace("#pragma once", "")
        device = re.sub(r"^#if !defined\(__CUDACC_RTC__\)\n#include.*?^#endif\n", "", text, flags=re.M | re.S)
        return re.sub(r'^#include "(\S+)"$', lambda found: read(found[1]), device, flags=re.M)

    return read(f"{name}.cu")


@cache
def _module(name: str) -> Any:
    """Compiled without CuPy's ``enable_cooperative_groups``, which links CUDA's device run-time library: only the
    functions of that name need it, and it comes with a whole toolkit, not with CuPy."""
    import cupy

    return cupy.RawModule(code=source(name), options=OPTIONS, backend="nvrtc")


def launch(
    name: str,
    kernel: str,
    arguments: Sequence[Tensor | int | float | None],
    blocks: int,
    *,
    threads: int = THREADS,
    shared_bytes: int = 0,
    cooperative: bool = False,
) -> None:
    """Kernel ``kernel`` of ``<name>.cu``. Tensors become addresses, None that of none; an int is an ``int``, strides
    are given as :class:`Long`. The first tensor's device and torch's current stream there."""
    import cupy
    import numpy as np

    device = next(value.device for value in arguments if isinstance(value, Tensor))
    kinds = {Tensor: lambda x: np.uint64(x.data_ptr()), Long: np.int64, float: np.float32, int: np.int32}
    kinds[type(None)] = lambda _: np.uint64(0)
    values = tuple(next(make(x) for kind, make in kinds.items() if isinstance(x, kind)) for x in arguments)
    stream = torch.cuda.current_stream(device).cuda_stream
    with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream):
        function = _module(name).get_function(kernel)
        if shared_bytes > function.max_dynamic_shared_size_bytes:
            function.max_dynamic_shared_size_bytes = shared_bytes
        options = {"shared_mem": shared_bytes, "enable_cooperative_groups": cooperative}
        function.kernel((blocks,), (threads,), values, **options)  # the launch alone, of either kind


class Long(int):
    """A number that the kernel takes in 64 bits."""


def sample_logits(
    logits: Tensor,
    out: Tensor,
    invalid: Tensor,
    seeds: Tensor,
    step: Tensor,
    position: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    guidance: Tensor | None = None,
) -> None:
    B, (_, G, K) = len(seeds), logits.shape
    strides = [Long(x.stride(d)) for x in (logits, out) for d in (0, 1)]
    if B * G > 0:
        tensors = (logits, out, invalid, seeds, step, position, temperature, top_k, top_p, guidance)
        offsets = (*strides, step.stride(0), position.stride(0), 0 if guidance is None else guidance.stride(0))
        arguments: list[Tensor | int | float | None] = [*tensors, G, K, *offsets]
        launch(
            "sample_logits",
            f"sample_logits_{NAMES[logits.dtype]}",
            arguments,
            B * G,
            shared_bytes=-(-K // 4) * 16,
        )


def prediction_head(
    table: Tensor,
    h: Tensor,
    codes: Tensor,
    invalid: Tensor,
    seeds: Tensor,
    step: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    draw_top: bool,
    stored: int,
    blocks: int,
    slots: int,
    dependent: bool,
) -> None:
    """RuntimeError with ``dependent``: CuPy hands no attributes to a launch."""
    if dependent:
        raise RuntimeError("prediction_head: dependent: expected False, CuPy launches no kernel so; got True")
    images, name = len(h), STORED[stored]
    tensors = (table, h, codes, invalid, seeds, step, temperature, top_k, top_p)
    launch(
        "prediction_head",
        f"prediction_head_{name}_{1 if images <= 4 else 2 if images <= 8 else 4}",
        [*tensors, Long(codes.stride(0)), images, int(draw_top), slots],
        blocks,
        threads=THREADS + 32,
        shared_bytes=-(-slots * HEAD_SLOT_BYTES[name] // 128) * 128 + HEAD_FIXED_BYTES,
        cooperative=True,
    )


def score_codes(
    z_high: Tensor,
    z_low: Tensor,
    codes_high: Tensor,
    codes_low: Tensor,
    square: Tensor,
    best: Tensor,
    second: Tensor,
    index: Tensor,
    split: bool,
) -> None:
    (rows, width), codes = z_high.shape, len(codes_high)
    tensors = (z_high, z_low, codes_high, codes_low, square, best, second, index)
    kernel, tiles = f"score_codes_{'split' if split else 'plain'}", -(-rows // 128) * -(-codes // 128)
    launch("nearest_code", kernel, [*tensors, rows, codes, width], tiles, shared_bytes=128 * 1024)


def settle_codes(
    z: Tensor,
    book: Tensor,
    length: Tensor,
    longest: Tensor,
    best: Tensor,
    second: Tensor,
    index: Tensor,
    found: Tensor,
    settled: Tensor,
    *bound: float,
) -> None:
    (rows, channels), codes = z.shape, len(book)
    tensors = (z, book, length, longest, best, second, index, found, settled)
    launch("nearest_code", "settle_codes", [*tensors, rows, codes, channels, *bound], -(-rows // 8))
