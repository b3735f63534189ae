"""Launching the Triton kernel for few rows (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import capability_at_least, dense, dependents, interpreted, launch, on, power_of_2

MOST_ROWS = 16
OUT = 32
WARPS, STAGES = 4, 4
PROGRAMS = 264  # wanted: two for each of an H100's multiprocessors. None of these is measured on a GPU yet.
MOST_PARTS = 16
MOST_TILES = 4096
LINE = 128  # bytes
FP8_CAPABILITY = (8, 9)
DEPENDENT_CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Workspace:
    """Memory in which the parts of a product meet: one for all products that run one after the other on a device.

    ``partials`` fp32; ``counters`` int32 [4096], zeros between products.
    """

    partials: Tensor
    counters: Tensor

    @classmethod
    def on(cls, device: torch.device) -> Workspace:
        sums = torch.empty(PROGRAMS * 2 * OUT * MOST_ROWS, dtype=torch.float32, device=device)
        return cls(sums, torch.zeros(MOST_TILES, dtype=torch.int32, device=device))


def width(dtype: torch.dtype) -> int:
    """Inputs multiplied at a time: 256 bytes of each row of x."""
    return 256 // dtype.itemsize


def parts(N: int, K: int, dtype: torch.dtype) -> int:
    """In how many parts the inputs are taken: 1 to 16, until there are programs enough or a part is one tile."""
    found = 1
    while found < MOST_PARTS and -(-N // OUT) * found < PROGRAMS and 2 * found * width(dtype) <= K:
        found *= 2
    return found


def why_not(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, residual: Tensor | None, *others: Any
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    rows = x.numel() // x.shape[-1]
    if not 1 <= rows <= MOST_ROWS:
        return f"expected 1 to {MOST_ROWS} rows; got {rows}"
    if weight.shape[0] > OUT * MOST_TILES:
        return f"expected at most {OUT * MOST_TILES} outputs; got {weight.shape[0]}"
    if not weight.is_contiguous():
        return "expected a contiguous weight"
    if others[1:] and others[1] and not (x.is_cuda and capability_at_least(x, DEPENDENT_CAPABILITY)):
        return "expected compute capability 9.0 or above for a prefetch in a dependent launch"
    if weight.dtype is torch.float8_e4m3fn:
        if not capability_at_least(x, FP8_CAPABILITY):
            return "expected compute capability 8.9 or above for fp8, which has the instruction that widens it"
        weight = weight.view(torch.int8)
    return triton_launch.why_not(x, weight, scale, bias, residual)


def constants(N: int, K: int, dtype: torch.dtype, gelu: str) -> dict[str, Any]:
    shape = {"PARTS": parts(N, K, dtype), "GELU": gelu, "ROWS": MOST_ROWS, "OUT": OUT, "BK": width(dtype)}
    return {**shape, "PRECISION": "tf32x3" if dtype is torch.float32 else "ieee"}


def prefetched_lines(K: int, weight: torch.dtype, chosen: dict[str, Any]) -> int:
    """Lines of 128 bytes in an output's part of a weight, rounded up to a power of 2."""
    chunks = ceil(K / chosen["BK"])
    return power_of_2(ceil(ceil(chunks / chosen["PARTS"]) * chosen["BK"] * weight.itemsize / LINE))


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: str,
    prefetch: bool,
    partials: Tensor,
    counters: Tensor,
) -> Tensor:
    from hqtvae_fast.ops.kernels.skinny_linear import triton_kernels

    (N, K), x_MK = weight.shape, x.reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)
    chosen = constants(N, K, x.dtype, gelu)
    with on(x):
        launch(
            triton_kernels.skinny_linear_kernel,
            (-(-N // OUT), chosen["PARTS"]),
            *(x_MK, weight, *dense(scale, bias, residual), out),
            *(partials, counters, len(x_MK), N, K),
            **chosen,
            TRIGGER=dependents(x),
            PREFETCH=prefetched_lines(K, weight.dtype, chosen) if prefetch else 0,
            INTERPRET=interpreted(),
            **({"launch_pdl": True} if prefetch else {}),
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return out


def describe(x: Tensor, weight: Tensor, *others: Any) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    N, K = weight.shape
    many = parts(N, K, x.dtype)
    return {
        "tile": f"{MOST_ROWS} rows x {OUT} outputs, {width(x.dtype)} inputs at a time",
        "programs": f"{-(-N // OUT) * many}, {many} for each output, {WARPS} warps, {STAGES} stages",
    }
