"""The product of 8-bit numbers in plain torch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.bias_gelu import reference as pointwise

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
INPUTS = (torch.float32, torch.bfloat16, torch.float16)
LEAST = 2.0**-100
"""What a row's largest magnitude is taken for at least: then neither quotient leaves fp32's normal numbers."""
MOST_INPUTS = (2**31 - 1) // 127**2
"""Whose sums int32 holds: 133,144."""


def round_rows(x_MK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows as numbers [M, K] of a dtype of :data:`LARGEST` and a scale fp32 [M] each: x ~ numbers * scale. Of a row
    that is not finite, zeros and NaN."""
    wide = x_MK.float()
    finite_M1 = wide.isfinite().all(dim=1, keepdim=True)
    size_M1 = torch.where(finite_M1, wide.abs().amax(dim=1, keepdim=True).clamp_min(LEAST), 1.0)
    limit_M1 = torch.full_like(size_M1, LARGEST[dtype])  # of two tensors a GPU takes the quotient, not a reciprocal
    numbers = torch.where(finite_M1, wide * (limit_M1 / size_M1), 0.0)
    numbers = numbers.round() if dtype is torch.int8 else numbers
    return numbers.to(dtype), torch.where(finite_M1, size_M1 / limit_M1, torch.nan).squeeze(1)


def exact_sums(numbers: Tensor, weight: Tensor) -> Tensor:
    """[M, N] in float64, which holds every one exactly: of int8 up to 2^31, of fp8 up to 2^35 in steps of 2^-18."""
    return numbers.double() @ weight.double().T


def finish(
    sums: Tensor, scales: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: str
) -> Tensor:
    """What follows sums [M, N], in their floating dtype; ``residual`` [..., N]."""
    wide = sums.dtype
    y = sums * scales.to(wide)[:, None] * scale.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    if gelu != "none":
        y = pointwise.bias_gelu(y, None, gelu)
    return y if residual is None else y + residual.reshape(y.shape).to(wide)


def quantized_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: str
) -> Tensor:
    """See :func:`hqtvae_fast.ops.quantized_linear`."""
    numbers, scales = round_rows(x.reshape(-1, x.shape[-1]), weight.dtype)
    y = finish(exact_sums(numbers, weight).float(), scales, scale, bias, residual, gelu)
    return y.to(x.dtype).reshape(*x.shape[:-1], len(weight))
