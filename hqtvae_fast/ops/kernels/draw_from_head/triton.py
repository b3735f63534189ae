"""Launching the Triton kernels of the head's product with the draw (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import interpreted, launch, on, power_of_2


@dataclass(frozen=True)
class Tile:
    """Rows x codes a program, ``bytes`` of each row and code multiplied at a time."""

    rows: int
    codes: int
    bytes: int
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.codes}x{self.bytes}"


FEW = Tile(rows=16, codes=32, bytes=256, warps=4, stages=4)
"""Up to 16 rows the time is the time to stream the weight: small tiles, 256 of them for 8192 codes."""
MANY = Tile(rows=64, codes=128, bytes=128, warps=8, stages=3)
"""The tile's noise stays in registers beside its sums, 32 of each a thread; 128 rows would spill."""


OTHERS = (
    Tile(rows=16, codes=64, bytes=256, warps=4, stages=4),
    Tile(rows=32, codes=64, bytes=128, warps=4, stages=4),
    Tile(rows=64, codes=64, bytes=128, warps=4, stages=4),
)
TILES = {tile.name: tile for tile in (FEW, MANY, *OTHERS)}


def choose_tile(rows: int) -> Tile:
    return FEW if rows <= FEW.rows else MANY


def constants(tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    shape = {"ROWS": tile.rows, "CODES": tile.codes, "BD": tile.bytes // dtype.itemsize}
    return {**shape, "PRECISION": "tf32x3" if dtype is torch.float32 else "ieee"}


def why_not(x_BGD: Tensor, weight_KD: Tensor, *others: Tensor, tile: Tile | None = None) -> str | None:
    """None where the kernels can take these inputs, else the reason."""
    return triton_launch.why_not(x_BGD, weight_KD)


def describe(x_BGD: Tensor, weight_KD: Tensor, *others: Any, tile: Tile | None = None) -> dict[str, str]:
    """How the kernels would be launched on these inputs."""
    rows = x_BGD.numel() // x_BGD.shape[-1]
    tile = tile or choose_tile(rows)
    programs = -(-rows // tile.rows) * -(-weight_KD.shape[0] // tile.codes)
    inputs = tile.bytes // x_BGD.dtype.itemsize
    return {
        "tile": f"{tile.rows} rows x {tile.codes} codes, {inputs} inputs at a time",
        "programs": f"{programs}, {tile.warps} warps, {tile.stages} stages; then {rows} that settle a row",
    }


def draw_from_head(
    x_BGD: Tensor,
    weight_KD: Tensor,
    out_BG: Tensor,
    invalid: Tensor,
    seeds_B: Tensor,
    step: Tensor,
    position: Tensor,
    temperature: Tensor,
    tile: Tile | None = None,
) -> None:
    """As the operator; see :func:`hqtvae_fast.ops.draw_from_head`."""
    from hqtvae_fast.ops.kernels.draw_from_head import triton_kernels

    (B, G, D), K = x_BGD.shape, weight_KD.shape[0]
    M = B * G
    if M == 0:
        return
    tile = tile or choose_tile(M)
    tiles = -(-K // tile.codes)
    scores_TM = torch.empty(tiles, M, dtype=torch.float32, device=x_BGD.device)
    codes_TM = torch.empty(tiles, M, dtype=torch.int32, device=x_BGD.device)
    step_B, position_B = step.expand(B), position.expand(B)
    with on(x_BGD):
        launch(
            triton_kernels.tiles_kernel,
            (-(-M // tile.rows), tiles),
            *(x_BGD.reshape(M, D).contiguous(), weight_KD.contiguous(), scores_TM, codes_TM, invalid),
            *(seeds_B.contiguous(), step_B, position_B, temperature),
            *(M, G, K, D, step_B.stride(0), position_B.stride(0)),
            **constants(tile, x_BGD.dtype),
            INTERPRET=interpreted(),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=False,
        )
        launch(
            triton_kernels.settle_kernel,
            (M,),
            *(scores_TM, codes_TM, out_BG, tiles, M, G, out_BG.stride(0), out_BG.stride(1)),
            TILES=power_of_2(tiles),
            num_warps=1,
        )
