"""Launching the Triton kernels of GroupNorm with SiLU (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.kernels.round_map.reference import FORMS
from hqtvae_fast.ops.kernels.round_map.triton import why_not_form
from hqtvae_fast.ops.triton_launch import launch, on


@dataclass(frozen=True)
class Tile:
    """Values and warps of a program's step."""

    values: int = 4096
    warps: int = 8

    def rows(self, C: int) -> int:
        return self.values // C


# 16 values a thread and array: the backward pass holds four arrays, so that two to four blocks of 8 warps share a
# multiprocessor.
DEFAULT = Tile()
OTHERS = (Tile(2048, 4), Tile(2048, 8), Tile(4096, 4), Tile(8192, 8), Tile(8192, 16))
TILES = {f"{tile.values}x{tile.warps}": tile for tile in OTHERS}
"""Of the forward pass."""
# Runs of rows that an image is cut into. 16 tiles in each, so that joining the runs (256 bytes of each read by every
# program) stays below a tenth of the traffic; a few at least, for one image alone.
TILES_PER_RUN, FEWEST_RUNS, MOST_RUNS = 16, 8, 128


def why_not(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
    form: str | None = None,
    scale: float = 1.0,
    zero: int = 0,
    tile: Tile = DEFAULT,
) -> str | None:
    """None where the kernels can take this map, else the reason."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        return f"expected channels-last memory; got strides {x.stride()} for {list(x.shape)}"
    C = x.shape[1]
    if C & (C - 1) or num_groups & (num_groups - 1) or tile.values < C:
        return f"expected powers of two, up to {tile.values} channels; got {C} channels in {num_groups} groups"
    if x[0].numel() >= 2**31:
        return f"expected maps of fewer than 2^31 values an image; got {list(x.shape[1:])}"
    reason = None if form is None else why_not_form(x, form)
    return reason or triton_launch.why_not(x, shift, weight, bias)


def run_length(HW: int, C: int, tile: Tile = DEFAULT) -> int:
    """Rows of each run but the last: whole tiles, depending on neither batch nor device."""
    tiles = -(-HW // tile.rows(C))
    runs = min(MOST_RUNS, max(min(FEWEST_RUNS, tiles), -(-tiles // TILES_PER_RUN)))
    return -(-tiles // runs) * tile.rows(C)


def describe(x: Tensor, *rest: object, tile: Tile = DEFAULT) -> dict[str, str]:
    """How the kernels would be launched on these inputs."""
    B, C, H, W = x.shape
    run = run_length(H * W, C, tile)
    return {
        "tile": f"{tile.rows(C)} pixels x {C} channels, {tile.warps} warps",
        "programs": f"{B * -(-H * W // run)} a pass, of {run} pixels; two passes",
    }


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
    form: str | None = None,
    scale: float = 1.0,
    zero: int = 0,
    tile: Tile = DEFAULT,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`reference.forward`."""
    from hqtvae_fast.ops.kernels.group_norm_silu import triton_kernels

    B, C, H, W = x.shape
    HW, run = H * W, run_length(H * W, C, tile)
    grid = (-(-HW // run), B)
    constants = _constants(C, num_groups, tile)
    runs = torch.empty(B, grid[0], 2, num_groups, dtype=torch.float32, device=x.device)
    mean, rstd = (torch.empty(B, num_groups, dtype=torch.float32, device=x.device) for _ in range(2))
    y = torch.empty_like(x, dtype=x.dtype if form is None else FORMS[form].dtype)
    total = x.new_empty(0) if residual is None else torch.empty_like(x)
    source, added = x if residual is None else total, residual is not None
    weight, bias = weight.contiguous(), bias.contiguous()
    lacks = weight if shift is None else shift.contiguous()  # one that is absent is never read
    with on(x):
        launch(
            triton_kernels.statistics_kernel,
            grid,
            *(x, residual if added else x, source, lacks, runs, HW, run),
            ADD=added,
            SHIFT=shift is not None,
            **constants,
        )
        launch(
            triton_kernels.apply_kernel,
            grid,
            *(source, lacks, runs, weight, bias, y, mean, rstd, HW, run, eps, 1.0 / scale, zero),
            SPLITS=MOST_RUNS,
            SILU=silu,
            SHIFT=shift is not None and not added,  # the sum has it
            ROUND=form is not None,
            **constants,
        )
    return y, total, mean, rstd


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`reference.backward`; ``dy`` in x's dtype, channels-last."""
    from hqtvae_fast.ops.kernels.group_norm_silu import triton_kernels

    B, C, H, W = x.shape
    HW, run = H * W, run_length(H * W, C)
    grid = (-(-HW // run), B)
    constants = {**_constants(C, mean.shape[1], DEFAULT), "SILU": silu}
    weight, bias = weight.contiguous(), bias.contiguous()
    runs = torch.empty(B, grid[0], 2, C, dtype=torch.float32, device=x.device)
    dx = torch.empty_like(x)
    with on(x):
        launch(triton_kernels.sums_kernel, grid, dy, x, weight, bias, mean, rstd, runs, HW, run, **constants)
        sums = runs.sum(dim=1)
        launch(triton_kernels.gradient_kernel, grid, dy, x, weight, bias, mean, rstd, sums, dx, HW, run, **constants)
    dbias, dweight = sums[:, 0].sum(dim=0), sums[:, 1].sum(dim=0)
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)


def _constants(C: int, num_groups: int, tile: Tile) -> dict[str, object]:
    return {"C": C, "GROUPS": num_groups, "ROWS": tile.rows(C), "num_warps": tile.warps}
