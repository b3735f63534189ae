"""Launching the Triton kernel of 8-bit convolutions (:mod:`.triton_kernels`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.kernels.quantized_conv import reference
from hqtvae_fast.ops.kernels.upsample_conv.triton import ENOUGH_PROGRAMS, Tile
from hqtvae_fast.ops.triton_launch import capability_at_least, launch, multiprocessors, on

# 64 bytes a row and step, which are 64 channels where bf16's are 32. With several scales a
# second sum is held, and mma.sync has its operands in registers beside both: LARGE would fill all 255 of a thread with
# Triton 3.7 and spill with 3.8 and 3.9. On Hopper operands stay in shared memory.
LARGE, SMALL = Tile(128, 128, 64, warps=8, stages=4), Tile(128, 64, 64, warps=8, stages=4)
FEW = Tile(64, 64, 64, warps=4, stages=4)
"""For so few pixels that LARGE's programs would leave multiprocessors idle, as of the convolution in bf16."""
TILES = {f"{tile.rows}x{tile.columns}": tile for tile in (LARGE, SMALL, FEW, Tile(256, 64, 64, warps=8, stages=3))}
FEWEST_CHANNELS = 32  # of a scale: what one instruction takes
OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)
FP8_CAPABILITY, HOPPER = (8, 9), (9, 0)


def pick_tile(x: Tensor, weight: Tensor, scales: int) -> Tile:
    if scales > 1:
        return LARGE if capability_at_least(x, HOPPER) else SMALL
    return LARGE if _programs(x, weight, LARGE) >= ENOUGH_PROGRAMS * multiprocessors(x.device) else FEW


def why_not_map(x: Tensor, form: torch.dtype, dtype: torch.dtype) -> str | None:
    """None where maps like ``x`` (of any dtype) can be taken as numbers of ``form``, to an output in ``dtype``, else
    the reason."""
    if dtype not in OUTPUTS:
        return f"expected an output in bf16, fp16 or fp32; got {dtype}"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return f"x: expected channels-last memory; got strides {x.stride()} for {list(x.shape)}"
    if 4 * x.numel() // x.shape[1] >= 2**31:
        return f"expected fewer than 2^29 pixels in all; got {list(x.shape)}"
    if form is torch.float8_e4m3fn and not capability_at_least(x, FP8_CAPABILITY):
        major, minor = torch.cuda.get_device_capability(x.device)
        return f"expected compute capability 8.9 or above for fp8; got {major}.{minor}"
    return None


def why_not(
    x: Tensor,
    weight: Tensor,
    x_scales: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    offsets: Tensor | None,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    if tile is not None and len(x_scales) > 1 and tile != pick_tile(x, weight, len(x_scales)):
        return f"expected one scale for tiles of {tile.rows}x{tile.columns}; got {len(x_scales)}"
    if x.shape[1] // len(x_scales) % FEWEST_CHANNELS:
        return f"expected scales of multiples of {FEWEST_CHANNELS} channels; got {x.shape[1]} in {len(x_scales)}"
    reason = why_not_map(x, x.dtype, dtype)
    if reason is None and not weight.is_contiguous(memory_format=torch.channels_last):
        reason = f"weight: expected channels-last memory; got strides {weight.stride()} for {list(weight.shape)}"
    return reason or triton_launch.why_not(x_scales, weight_scales, bias)


def describe(x: Tensor, weight: Tensor, x_scales: Tensor, *rest: object, tile: Tile | None = None) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    tile = tile or pick_tile(x, weight, len(x_scales))
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
    offsets: Tensor | None,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> Tensor:
    """As :func:`reference.quantized_conv`."""
    from hqtvae_fast.ops.kernels.quantized_conv import triton_kernels

    B, C, H, W = x.shape
    out = reference.empty_output(x, weight, bias, dtype)
    block, tile = C // len(x_scales), tile or pick_tile(x, weight, len(x_scales))
    vectors = [each.contiguous() for each in (x_scales, weight_scales, bias)]
    vectors.append(vectors[0] if offsets is None else offsets.contiguous())  # one that is absent is never read
    shape = constants(tile, x.dtype, weight.shape[2], block, one=block == C, offset=offsets is not None)
    with on(x):
        launch(
            triton_kernels.quantized_kernel,
            (_programs(x, weight, tile),),
            *(x, weight, *vectors, out, B * H * W, H, W, C, len(bias), block),
            **shape,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def constants(tile: Tile, dtype: torch.dtype, taps: int, block: int, one: bool, offset: bool = False) -> dict[str, Any]:
    """Of a launch; ``one``: there is one scale; ``offset``: a number stands for 0."""
    import triton.language as tl

    shape = {"PHASES": 1 if taps == 3 else 4, "TAPS": taps, "ROWS": tile.rows, "COLUMNS": tile.columns, "ONE": one}
    sums = tl.int32 if dtype is torch.int8 else tl.float32
    return {**shape, "DEPTH": depth_of(block), "SUMS": sums, "OFFSET": offset}


def _programs(x: Tensor, weight: Tensor, tile: Tile) -> int:
    phases = 1 if weight.shape[2] == 3 else 4
    return phases * -(-(x.numel() // x.shape[1]) // tile.rows) * -(-(len(weight) // phases) // tile.columns)
