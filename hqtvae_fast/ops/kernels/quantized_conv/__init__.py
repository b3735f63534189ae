"""Convolution of 8-bit maps with 8-bit weights: what a decoder that is calibrated is computed by on a GPU, where a plan
says so (:mod:`hqtvae_fast.ops.kernels.conv3x3`).

int8 products are exact and summed in int32, fp8 (e4m3) products exact and summed in fp32: an H100 does twice as many of
either as of bf16's. What the pictures are then is measured by ``hqtvae bench precision``, and before a plan may say so
by ``hqtvae tune``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.quantized_conv import reference, triton
from hqtvae_fast.ops.kernels.quantized_conv.formats import (
    BORDERS,
    LARGEST,
    quantize,
    quantize_weights,
    zero_offsets,
)
from hqtvae_fast.ops.operator import dispatched


def quantized_conv(
    x: Tensor,
    weight: Tensor,
    x_scales: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    *,
    offsets: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    backend: str | None = None,
) -> Tensor:
    """A convolution padded with zeros, [B, C, H, W] -> [B, N, H, W] in channels-last memory and ``dtype``:
    bias_n + weight_scales_n * sum over blocks of channels of x_scales_block * sum over taps and channels of x * weight.

    ``x``: int8 or float8_e4m3fn (:func:`quantize`), ``weight`` in the same: [N, C, 3, 3], or [4 * N, C, 2, 2] of a
    folded upsampling, whose output is [B, N, 2H, 2W] (:func:`quantize_weights`). ``x_scales`` [C / k]: one for each k
    neighbouring channels, one number for a scale a map. ``weight_scales``: one a row of ``weight``; ``bias`` [N]; all
    three fp32. A block's sum is int32 for int8, exactly, and fp32 for fp8; blocks are summed in fp32. For inference.

    ``offsets`` int32 [16, rows of ``weight``], of int8 with one scale: what is taken off a pixel's sums, by the borders
    that it lies at, where the map's 0 is another number than 0 (:func:`zero_offsets`). Exact, too.

    ``backend``: "triton" (CUDA, channels-last, k a multiple of 32; fp8 from compute capability 8.9 on) or "reference"
    (anywhere). Raises ValueError on other shapes or dtypes, and BackendError where the backend asked for cannot run.
    """
    _check(x, weight, x_scales, weight_scales, bias)
    if offsets is not None:
        _check_offsets(offsets, x, weight, x_scales)
    inputs = (x, weight, x_scales, weight_scales, bias, offsets, dtype)
    choice = choose("quantized_conv", BACKENDS, *inputs, backend=backend)
    return torch.ops.hqtvae_fast.quantized_conv(*inputs, choice.backend.name)


def _check(x: Tensor, weight: Tensor, x_scales: Tensor, weight_scales: Tensor, bias: Tensor) -> None:
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x: expected [B, C, H, W], none of them 0; got {list(x.shape)}")
    if x.dtype not in LARGEST or weight.dtype != x.dtype:
        raise ValueError(f"expected int8 or float8_e4m3fn for both; got {x.dtype} and {weight.dtype}")
    N, C = bias.numel(), x.shape[1]
    if tuple(weight.shape) not in ((N, C, 3, 3), (4 * N, C, 2, 2)):
        wanted = f"[{N}, {C}, 3, 3] or [{4 * N}, {C}, 2, 2]"
        raise ValueError(f"weight: expected {wanted} for {N} biases; got {list(weight.shape)}")
    if x_scales.ndim != 1 or C % max(1, len(x_scales)) or tuple(weight_scales.shape) != (len(weight),):
        wanted = f"a divisor of {C} and {len(weight)}"
        raise ValueError(f"scales: expected {wanted} of them; got {list(x_scales.shape)}, {list(weight_scales.shape)}")
    if not all(tensor.dtype is torch.float32 for tensor in (x_scales, weight_scales, bias)):
        raise ValueError(f"expected fp32 scales and bias; got {x_scales.dtype}, {weight_scales.dtype}, {bias.dtype}")


def _check_offsets(offsets: Tensor, x: Tensor, weight: Tensor, x_scales: Tensor) -> None:
    if x.dtype is not torch.int8 or len(x_scales) != 1:
        raise ValueError(f"offsets: expected int8 with one scale; got {x.dtype} with {len(x_scales)}")
    if offsets.dtype is not torch.int32 or tuple(offsets.shape) != (BORDERS, len(weight)):
        got = f"{offsets.dtype} {list(offsets.shape)}"
        raise ValueError(f"offsets: expected int32 [{BORDERS}, {len(weight)}]; got {got}")


BACKENDS = (
    *with_tiles("triton", triton.quantized_conv, triton.why_not, triton.TILES),
    Backend("reference", reference.quantized_conv),
)


@dispatched("quantized_conv", BACKENDS, mutates_args=())
def _quantized_conv(
    x: Tensor,
    weight: Tensor,
    x_scales: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    offsets: Tensor | None,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    return reference.empty_output(x, weight, bias, dtype)


__all__ = ["LARGEST", "quantize", "quantize_weights", "quantized_conv", "zero_offsets"]
