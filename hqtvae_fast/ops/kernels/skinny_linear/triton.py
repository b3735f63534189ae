"""Launching the Triton kernel of skinny products (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.kernels.skinny_linear.reference import MOMENTS_OF
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

MOST_ROWS, STREAMED_ROWS = 16, 128
"""Up to the first a step's products are ours; up to the second the kernel takes them, where that is asked for."""
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
    divisor of the steps, so that none has less to do; else a power of 2. ``depth``: bytes of a row of x multiplied at
    a time. ``rows``: how many it takes, at least and at most."""

    out: int = 32
    programs: float = 2
    even: bool = False
    warps: int = 4
    stages: int = 4
    depth: int = 256
    rows: tuple[int, int] = (1, MOST_ROWS)


def _streamed(out: int, programs: float, warps: int, stages: int, depth: int = 128) -> Tile:
    return Tile(out, programs, True, warps, stages, depth, (MOST_ROWS + 1, STREAMED_ROWS))


DEFAULT = Tile()
STREAMED = _streamed(64, 0.7, 4, 6)
"""64 outputs are the least of Hopper's tensor cores. One wave of programs, two thirds of the multiprocessors or more:
each part of a tile costs OUT x M sums written and read, as many bytes as 64 of its inputs."""
TILES = {
    "16x2": Tile(16, 2, even=True),
    "16x4": Tile(16, 4, even=True),
    "32x2": Tile(32, 2, even=True),
    "32x4": Tile(32, 4, even=True),
    "64x2": Tile(64, 2, even=True),
    "64x4": Tile(64, 4, even=True),
    "64x1": _streamed(64, 1, 4, 6),
    "128x0.7": _streamed(128, 0.7, 8, 4),
    "128x1": _streamed(128, 1, 8, 4),
}
"""Outputs x programs for each multiprocessor; the last three for 17 to 128 rows."""


def tile_for(rows: int) -> Tile:
    """What "triton" takes by itself."""
    return DEFAULT if rows <= MOST_ROWS else STREAMED


def warps_for(rows: int, dtype: torch.dtype, tile: Tile) -> int:
    """Above 64 rows, or 32 of fp32 with its three products, twice as many threads hold them."""
    return tile.warps if rows * dtype.itemsize <= 128 else max(8, tile.warps)


@dataclass(frozen=True)
class Workspace:
    """Memory in which the parts of a product meet: one for all products that run one after the other on a device.

    ``partials`` fp32; ``counters`` int32 [4096], zeros between products.
    """

    partials: Tensor
    counters: Tensor

    @classmethod
    def on(cls, device: torch.device) -> Workspace:
        tiles = (DEFAULT, STREAMED, *TILES.values())
        most = max(ceil(2 * tile.programs * multiprocessors(device)) * tile.out * tile.rows[1] for tile in tiles)
        sums = torch.empty(most, dtype=torch.float32, device=device)
        return cls(sums, torch.zeros(MOST_TILES, dtype=torch.int32, device=device))


def width(dtype: torch.dtype, tile: Tile = DEFAULT) -> int:
    """Inputs multiplied at a time."""
    return tile.depth // dtype.itemsize


def parts(N: int, K: int, dtype: torch.dtype, tile: Tile, count: int) -> int:
    """In how many parts the inputs are taken, 1 to 16: the fewest that make programs enough for ``count``
    multiprocessors, where there are inputs enough; never more than twice as many programs, which a workspace is for."""
    tiles, steps, wanted = ceil(N / tile.out), ceil(K / width(dtype, tile)), tile.programs * count
    if tile.even:
        possible = [number for number in range(1, MOST_PARTS + 1) if steps % number == 0]
    else:
        possible = [number for number in (1, 2, 4, 8, MOST_PARTS) if number * width(dtype, tile) <= K]
    possible = [number for number in possible if number == 1 or tiles * number <= 2 * wanted] or [1]
    enough = [number for number in possible if tiles * number >= wanted]
    return enough[0] if enough else possible[-1]


def why_not(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: str = "none",
    prefetch: bool = False,
    norm: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 0.0,
    added: Tensor | None = None,
    moments: Tensor | None = None,
    *,
    tile: Tile | None = None,
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    rows = x.numel() // x.shape[-1]
    least, most = (1, STREAMED_ROWS) if tile is None else tile.rows
    if not least <= rows <= most:
        return f"expected {least} to {most} rows; got {rows}"
    own = tile_for(rows) if tile is None else tile
    if weight.shape[0] > own.out * MOST_TILES:
        return f"expected at most {own.out * MOST_TILES} outputs; got {weight.shape[0]}"
    if not weight.is_contiguous():
        return "expected a contiguous weight"
    if norm is not None and power_of_2(x.shape[-1]) > WIDEST:
        return f"expected a norm of at most {WIDEST} inputs; got {x.shape[-1]}"
    if own.out > 64 and x.dtype is torch.float32:
        return f"expected 16 bits for tiles of {own.out} outputs, whose registers would spill; got fp32"
    if norm is not None and rows > MOST_ROWS and moments is None:
        return f"expected a norm of more than {MOST_ROWS} rows to be told their moments"
    if norm is None and moments is not None and own.out < MOMENTS_OF:
        return f"expected tiles of {MOMENTS_OF} outputs or more, of which there are moments; got {own.out}"
    if prefetch and not (x.is_cuda and capability_at_least(x, DEPENDENT_CAPABILITY)):
        return "expected compute capability 9.0 or above for a prefetch in a dependent launch"
    if weight.dtype is torch.float8_e4m3fn:
        if not capability_at_least(x, FP8_CAPABILITY):
            return "expected compute capability 8.9 or above for fp8, which has the instruction that widens it"
        weight = weight.view(torch.int8)
    return triton_launch.why_not(x, weight, scale, bias, residual)


def constants(
    rows: int, N: int, K: int, dtype: torch.dtype, gelu: str, tile: Tile, count: int, *, eps: float | None = None
) -> dict[str, Any]:
    """Of a launch on so many multiprocessors; ``eps``: of the norm, where the rows are normalised."""
    shape: dict[str, Any] = {"PARTS": parts(N, K, dtype, tile, count), "GELU": gelu}
    padded = MOST_ROWS if rows <= MOST_ROWS else power_of_2(rows)
    shape |= {"ROWS": padded, "OUT": tile.out, "BK": width(dtype, tile), "EPS": 0.0 if eps is None else eps}
    across = 0 if eps is None else max(power_of_2(K), MOMENTS_OF)
    shape |= {"GROUP": min(GROUP, power_of_2(rows), WIDEST // across) if across else 0, "WIDTH": across}
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
    moments: Tensor | None,
    partials: Tensor,
    counters: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    from hqtvae_fast.ops.kernels.skinny_linear import triton_kernels

    (N, K), x_MK = weight.shape, x.reshape(-1, x.shape[-1]).contiguous()
    out = torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)
    tile = tile_for(len(x_MK)) if tile is None else tile
    count, own = multiprocessors(x.device), None if norm is None else eps
    chosen = constants(len(x_MK), N, K, x.dtype, gelu, tile, count, eps=own)
    with on(x):
        launch(
            triton_kernels.skinny_linear_kernel,
            (ceil(N / tile.out), chosen["PARTS"]),
            *(x_MK, weight, *dense(scale, bias, residual, norm, shift, added), out),
            *(moments, partials, counters, len(x_MK), N, K),
            **chosen,
            TRIGGER=dependents(x),
            PREFETCH=prefetched_lines(K, weight.dtype, chosen) if prefetch else 0,
            INTERPRET=interpreted(),
            **({"launch_pdl": True} if prefetch else {}),
            num_warps=warps_for(len(x_MK), x.dtype, tile),
            num_stages=tile.stages,
        )
    return out


def describe(x: Tensor, weight: Tensor, *others: Any, tile: Tile | None = None) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    (N, K), rows = weight.shape, x.numel() // x.shape[-1]
    tile = tile_for(rows) if tile is None else tile
    chosen = constants(rows, N, K, x.dtype, "none", tile, multiprocessors(x.device))
    many, warps = chosen["PARTS"], warps_for(rows, x.dtype, tile)
    return {
        "tile": f"{chosen['ROWS']} rows x {tile.out} outputs, {chosen['BK']} inputs at a time",
        "programs": f"{ceil(N / tile.out) * many}, {many} for each output, {warps} warps, {tile.stages} stages",
    }
