"""Launching the Triton kernel for few rows (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import (
    capability_at_least,
    dense,
    dependents,
    interpreted,
    launch,
    multiprocessors,
    on,
    power_of_2,
)

MOST_ROWS = 16
MOST_PARTS = 16
MOST_TILES = 4096
WIDEST, GROUP = 8192, 4
"""Inputs of a row that is normalised, and rows whose statistics are found at a time: both in registers."""
LINE = 128  # bytes
FP8_CAPABILITY = (8, 9)
DEPENDENT_CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Tile:
    """Outputs of a program, and programs wanted for each multiprocessor. ``even``: the parts of the inputs are a
    divisor of the steps, so that none has less to do; else a power of 2."""

    out: int = 32
    programs: int = 2
    even: bool = False
    warps: int = 4
    stages: int = 4


DEFAULT = Tile()
TILES = {
    "16x2": Tile(16, 2, even=True),
    "16x4": Tile(16, 4, even=True),
    "32x2": Tile(32, 2, even=True),
    "32x4": Tile(32, 4, even=True),
    "64x2": Tile(64, 2, even=True),
    "64x4": Tile(64, 4, even=True),
}
"""Outputs x programs for each multiprocessor."""


@dataclass(frozen=True)
class Workspace:
    """Memory in which the parts of a product meet: one for all products that run one after the other on a device.

    ``partials`` fp32; ``counters`` int32 [4096], zeros between products.
    """

    partials: Tensor
    counters: Tensor

    @classmethod
    def on(cls, device: torch.device) -> Workspace:
        most = max(tile.programs * tile.out for tile in (DEFAULT, *TILES.values()))  # of twice as many as are wanted
        sums = torch.empty(multiprocessors(device) * 2 * most * MOST_ROWS, dtype=torch.float32, device=device)
        return cls(sums, torch.zeros(MOST_TILES, dtype=torch.int32, device=device))


def width(dtype: torch.dtype) -> int:
    """Inputs multiplied at a time: 256 bytes of each row of x."""
    return 256 // dtype.itemsize


def parts(N: int, K: int, dtype: torch.dtype, tile: Tile, count: int) -> int:
    """In how many parts the inputs are taken, 1 to 16: the fewest that make programs enough for ``count``
    multiprocessors, where there are inputs enough."""
    steps = ceil(K / width(dtype))
    if tile.even:
        possible = [number for number in range(1, MOST_PARTS + 1) if steps % number == 0]
    else:
        possible = [number for number in (1, 2, 4, 8, MOST_PARTS) if number == 1 or number * width(dtype) <= K]
    enough = [number for number in possible if ceil(N / tile.out) * number >= tile.programs * count]
    return enough[0] if enough else possible[-1]


def why_not(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    *others: Any,
    tile: Tile = DEFAULT,
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    rows = x.numel() // x.shape[-1]
    if not 1 <= rows <= MOST_ROWS:
        return f"expected 1 to {MOST_ROWS} rows; got {rows}"
    if weight.shape[0] > tile.out * MOST_TILES:
        return f"expected at most {tile.out * MOST_TILES} outputs; got {weight.shape[0]}"
    if not weight.is_contiguous():
        return "expected a contiguous weight"
    if others[2:] and others[2] is not None and power_of_2(x.shape[-1]) > WIDEST:
        return f"expected a norm of at most {WIDEST} inputs; got {x.shape[-1]}"
    if others[1:] and others[1] and not (x.is_cuda and capability_at_least(x, DEPENDENT_CAPABILITY)):
        return "expected compute capability 9.0 or above for a prefetch in a dependent launch"
    if weight.dtype is torch.float8_e4m3fn:
        if not capability_at_least(x, FP8_CAPABILITY):
            return "expected compute capability 8.9 or above for fp8, which has the instruction that widens it"
        weight = weight.view(torch.int8)
    return triton_launch.why_not(x, weight, scale, bias, residual)


def constants(
    N: int, K: int, dtype: torch.dtype, gelu: str, tile: Tile, count: int, *, normed: int = 0, eps: float = 0.0
) -> dict[str, Any]:
    """Of a launch on so many multiprocessors; ``normed``: rows, where they are normalised."""
    shape: dict[str, Any] = {"PARTS": parts(N, K, dtype, tile, count), "GELU": gelu}
    shape |= {"ROWS": MOST_ROWS, "OUT": tile.out, "BK": width(dtype), "EPS": eps}
    group = min(GROUP, power_of_2(normed), WIDEST // power_of_2(K)) if normed else 0
    shape |= {"GROUP": group, "WIDTH": power_of_2(K) if normed else 0}
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
    norm: Tensor | None,
    shift: Tensor | None,
    eps: float,
    added: Tensor | None,
    partials: Tensor,
    counters: Tensor,
    tile: Tile = DEFAULT,
) -> Tensor:
    from hqtvae_fast.ops.kernels.skinny_linear import triton_kernels

    (N, K), x_MK = weight.shape, x.reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)
    normed: dict[str, Any] = {} if norm is None else {"normed": len(x_MK), "eps": eps}
    chosen = constants(N, K, x.dtype, gelu, tile, multiprocessors(x.device), **normed)
    with on(x):
        launch(
            triton_kernels.skinny_linear_kernel,
            (ceil(N / tile.out), chosen["PARTS"]),
            *(x_MK, weight, *dense(scale, bias, residual, norm, shift, added), out),
            *(partials, counters, len(x_MK), N, K),
            **chosen,
            TRIGGER=dependents(x),
            PREFETCH=prefetched_lines(K, weight.dtype, chosen) if prefetch else 0,
            INTERPRET=interpreted(),
            **({"launch_pdl": True} if prefetch else {}),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def describe(x: Tensor, weight: Tensor, *others: Any, tile: Tile = DEFAULT) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    N, K = weight.shape
    many = parts(N, K, x.dtype, tile, multiprocessors(x.device))
    return {
        "tile": f"{MOST_ROWS} rows x {tile.out} outputs, {width(x.dtype)} inputs at a time",
        "programs": f"{ceil(N / tile.out) * many}, {many} for each output, {tile.warps} warps, {tile.stages} stages",
    }
