"""Launching the Triton kernel of 8-bit convolutions (:mod:`.triton_kernels`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.kernels.quantized_conv import reference
from hqtvae_fast.ops.kernels.upsample_conv.triton import Tile
from hqtvae_fast.ops.triton_launch import capability_at_least, launch, on

# 64 bytes a row and step, which are 64 channels where bf16's are 32. With several scales a
# second sum is held, and mma.sync has its operands in registers beside both: LARGE would fill all 255 of a thread with
# Triton 3.7 and spill with 3.8 and 3.9. On Hopper operands stay in shared memory.
LARGE, SMALL = Tile(128, 128, 64, warps=8, stages=4), Tile(128, 64, 64, warps=8, stages=4)
OTHERS = (Tile(64, 64, 64, warps=4, stages=4), Tile(256, 64, 64, warps=8, stages=3))
TILES = {f"{tile.rows}x{tile.columns}": tile for tile in (LARGE, SMALL, *OTHERS)}
FEWEST_CHANNELS = 32  # of a scale: what one instruction takes
OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)
FP8_CAPABILITY, HOPPER = (8, 9), (9, 0)


def pick_tile(scales: int, hopper: bool) -> Tile:
    return LARGE if scales == 1 or hopper else SMALL


def why_not(
    x: Tensor,
    weight: Tensor,
    x_scales: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    if tile is not None and len(x_scales) > 1 and tile != pick_tile(len(x_scales), capability_at_least(x, HOPPER)):
        return f"expected one scale for tiles of {tile.rows}x{tile.columns}; got {len(x_scales)}"
    if dtype not in OUTPUTS:
        return f"expected an output in bf16, fp16 or fp32; got {dtype}"
    if x.shape[1] // len(x_scales) % FEWEST_CHANNELS:
        return f"expected scales of multiples of {FEWEST_CHANNELS} channels; got {x.shape[1]} in {len(x_scales)}"
    for name, tensor in (("x", x), ("weight", weight)):
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            return f"{name}: expected channels-last memory; got strides {tensor.stride()} for {list(tensor.shape)}"
    if 4 * x.numel() // x.shape[1] >= 2**31:
        return f"expected fewer than 2^29 pixels in all; got {list(x.shape)}"
    if x.is_cuda and x.dtype is torch.float8_e4m3fn and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(x.device)
        if capability < FP8_CAPABILITY:
            return f"expected compute capability 8.9 or above for fp8; got {capability[0]}.{capability[1]}"
    return triton_launch.why_not(x_scales, weight_scales, bias)


def describe(x: Tensor, weight: Tensor, x_scales: Tensor, *rest: object, tile: Tile | None = None) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    tile = tile or pick_tile(len(x_scales), capability_at_least(x, HOPPER))
    depth = depth_of(x.shape[1] // len(x_scales))
    return {
        "tile": f"{tile.rows} pixels x {tile.columns} channels of one phase, {depth} input channels a step",
        "programs": f"{_programs(x, weight, tile)} of {tile.warps} warps, {tile.stages} stages",
    }


def depth_of(block: int) -> int:
    return LARGE.depth if block % LARGE.depth == 0 else FEWEST_CHANNELS


def quantized_conv(
    x: Tensor,
    weight: Tensor,
    x_scales: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> Tensor:
    """As :func:`reference.quantized_conv`."""
    from hqtvae_fast.ops.kernels.quantized_conv import triton_kernels

    B, C, H, W = x.shape
    out = reference.empty_output(x, weight, bias, dtype)
    block, tile = C // len(x_scales), tile or pick_tile(len(x_scales), capability_at_least(x, HOPPER))
    scales = (x_scales.contiguous(), weight_scales.contiguous(), bias.contiguous())
    with on(x):
        launch(
            triton_kernels.quantized_kernel,
            (_programs(x, weight, tile),),
            *(x, weight, *scales, out, B * H * W, H, W, C, len(bias), block),
            **constants(tile, x.dtype, weight.shape[2], block, one=block == C),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def constants(tile: Tile, dtype: torch.dtype, taps: int, block: int, one: bool) -> dict[str, Any]:
    """Of a launch; ``one``: there is one scale."""
    import triton.language as tl

    shape = {"PHASES": 1 if taps == 3 else 4, "TAPS": taps, "ROWS": tile.rows, "COLUMNS": tile.columns, "ONE": one}
    return {**shape, "DEPTH": depth_of(block), "SUMS": tl.int32 if dtype is torch.int8 else tl.float32}


def _programs(x: Tensor, weight: Tensor, tile: Tile) -> int:
    phases = 1 if weight.shape[2] == 3 else 4
    return phases * -(-(x.numel() // x.shape[1]) // tile.rows) * -(-(len(weight) // phases) // tile.columns)
