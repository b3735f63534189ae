"""Launching the Triton kernels of products of 8-bit numbers (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.kernels.quantized_linear.reference import LARGEST
from hqtvae_fast.ops.triton_launch import (
    capability_at_least,
    dense,
    interpreted,
    launch,
    multiprocessors,
    on,
    power_of_2,
    row_warps,
    rows,
)

WIDEST = 8192
"""Inputs of a row, which a program holds in registers while it finds the largest."""
FP8_CAPABILITY = (8, 9)
PROMOTED = 128
"""Inputs of fp8 whose products tensor cores may add up by themselves."""
ADDED, ADDING_WARPS = 1024, 4  # outputs of a program that adds parts up


@dataclass(frozen=True)
class Tile:
    """Rows and outputs of one program, inputs of one step, and in how many parts the inputs are taken."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    parts: int = 1
    capability: tuple[int, int] = (8, 0)
    """The least that it is for: below, it would spill or have too little shared memory."""
    int8_alone: bool = False
    """Whether it would spill with fp8, of which two sums are held."""

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}{f'x{self.parts}' if self.parts > 1 else ''}"


# A step is a line of 128 bytes of each row. LARGE: on an H100 two programs of 96 KB share a multiprocessor. SMALL: for
# so few rows that LARGE's programs would leave multiprocessors idle (256 rows of an output projection are 24 of them).
LARGE, SMALL = Tile(128, 128, 128, warps=8, stages=3), Tile(64, 64, 128, warps=4, stages=4)
# 256 outputs are a third more FLOP a byte from the caches; half a step more stages in as much memory; parts for the
# product of 6,144 inputs, of which one program would take 48 steps.
OTHERS = (
    Tile(64, 128, 128, warps=4, stages=4),
    Tile(128, 128, 64, warps=8, stages=4),
    Tile(128, 256, 64, warps=8, stages=4, int8_alone=True),
    Tile(128, 256, 128, warps=8, stages=3, int8_alone=True),
    Tile(64, 128, 128, warps=4, stages=4, parts=2),
    Tile(128, 128, 128, warps=8, stages=3, parts=2),
    Tile(128, 128, 128, warps=8, stages=3, parts=4),
)
TILES = {tile.name: tile for tile in (LARGE, SMALL, *OTHERS)}


def pick_tile(M: int, N: int, count: int) -> Tile:
    """For ``count`` multiprocessors."""
    return LARGE if programs(M, N, LARGE) >= count else SMALL


def programs(M: int, N: int, tile: Tile) -> int:
    """Of one part."""
    return ceil(M / tile.rows) * ceil(N / tile.columns)


def why_not(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: str,
    *,
    tile: Tile | None = None,
) -> str | None:
    """None where the kernels can take these inputs, else the reason."""
    K = weight.shape[1]
    if K > WIDEST:
        return f"expected at most {WIDEST} inputs; got {K}"
    if not weight.is_contiguous():
        return "expected a contiguous weight"
    if weight.dtype is torch.float8_e4m3fn and not capability_at_least(x, FP8_CAPABILITY):
        return "expected compute capability 8.9 or above for fp8, which has the instructions for it"
    if tile is not None:
        if not capability_at_least(x, tile.capability):
            least = ".".join(map(str, tile.capability))
            return f"expected compute capability {least} or above for tiles of {tile.name}"
        if tile.int8_alone and weight.dtype is not torch.int8:
            return f"expected a weight in int8 for tiles of {tile.name}; got {weight.dtype}"
        if tile.parts > ceil(K / tile.depth):
            return f"expected {tile.parts} steps of {tile.depth} inputs or more; got {K} inputs"
    return triton_launch.why_not(x, scale, bias, residual)


def round_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As :func:`reference.round_rows`, bit for bit, of x [..., K]."""
    from hqtvae_fast.ops.kernels.quantized_linear import triton_kernels

    x_MK = rows(x)
    M, K = x_MK.shape
    # The interpreter does not round to fp8: torch does, of numbers that nothing else was done to.
    stored = torch.float32 if interpreted() and dtype is not torch.int8 else dtype
    numbers = torch.empty(M, K, dtype=stored, device=x.device)
    scales = torch.empty(M, dtype=torch.float32, device=x.device)
    with on(x):
        launch(
            triton_kernels.round_rows_kernel,
            (M,),
            *(x_MK, numbers, scales, K, x_MK.stride(0)),
            **rounding(K, dtype),
            num_warps=row_warps(power_of_2(K)),
            enable_fp_fusion=False,
        )
    return numbers.to(dtype), scales


def rounding(K: int, dtype: torch.dtype) -> dict[str, Any]:
    """Constants of the kernel that rounds rows."""
    return {"LARGEST": LARGEST[dtype], "WHOLE": dtype is torch.int8, "WIDTH": power_of_2(K)}


def constants(K: int, dtype: torch.dtype, gelu: str, tile: Tile) -> dict[str, Any]:
    """Of the kernel that multiplies."""
    import triton.language as tl

    shape: dict[str, Any] = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "PARTS": tile.parts}
    whole = dtype is torch.int8
    shape |= {"EVEN": K % tile.depth == 0, "SUMS": tl.int32 if whole else tl.float32}
    return {**shape, "PROMOTED": 0 if whole else min(PROMOTED, tile.depth), "GELU": gelu}


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: str,
    *,
    tile: Tile | None = None,
) -> Tensor:
    """Rows are rounded, multiplied, and where they were multiplied in parts, these added up."""
    from hqtvae_fast.ops.kernels.quantized_linear import triton_kernels

    (N, K), M = weight.shape, x.numel() // x.shape[-1]
    # The interpreter cuts digits off where a GPU rounds to 16 bits.
    out = torch.empty(*x.shape[:-1], N, dtype=torch.float32 if interpreted() else x.dtype, device=x.device)
    if out.numel() == 0:
        return out.to(x.dtype)
    tile = tile or pick_tile(M, N, multiprocessors(x.device))
    numbers, scales = round_rows(x, weight.dtype)
    sums = torch.int32 if weight.dtype is torch.int8 else torch.float32
    partials = torch.empty(tile.parts, M, N, dtype=sums, device=x.device) if tile.parts > 1 else None
    others = dense(scale, bias, residual)
    with on(x):
        launch(
            triton_kernels.quantized_linear_kernel,
            (programs(M, N, tile), tile.parts),
            *(numbers, weight, scales, *others, out, partials, M, N, K),
            **constants(K, weight.dtype, gelu, tile),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=False,
        )
        if partials is not None:
            launch(
                triton_kernels.add_parts_kernel,
                (M, ceil(N / ADDED)),
                *(partials, scales, *others, out, M, N),
                **{"PARTS": tile.parts, "GELU": gelu, "BLOCK": ADDED},
                num_warps=ADDING_WARPS,
                enable_fp_fusion=False,
            )
    return out.to(x.dtype)


def describe(x: Tensor, weight: Tensor, *others: Any, tile: Tile | None = None) -> dict[str, str]:
    """How the kernels would be launched on these inputs."""
    (N, _), M = weight.shape, x.numel() // x.shape[-1]
    tile = tile or pick_tile(M, N, multiprocessors(x.device))
    return {
        "tile": f"{tile.rows} rows x {tile.columns} outputs, {tile.depth} inputs a step, {tile.parts} parts",
        "programs": f"{programs(M, N, tile) * tile.parts} of {tile.warps} warps, {tile.stages} stages",
    }
