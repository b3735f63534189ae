"""The product of 8-bit numbers by the library, rows rounded and everything after it by torch's plain operators."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.bias_gelu import bias_gelu
from hqtvae_fast.ops.kernels.quantized_linear.reference import finish, round_rows
from hqtvae_fast.ops.triton_launch import capability_at_least

FEWEST_ROWS = 17  # of torch._int_mm
WHOLE = 1024
"""Inputs of int8 whose sums fp32 holds in any order: 127 * 127 * 1024 < 2^24."""
SCALED_CAPABILITY = (9, 0)


def why_not_int_mm(x: Tensor, weight: Tensor, *others: object) -> str | None:
    """None where ``torch._int_mm`` takes these inputs, else the reason."""
    if weight.dtype is not torch.int8:
        return f"expected a weight in int8; got {weight.dtype}"
    if not x.is_cuda:
        return f"expected tensors on a CUDA device; got {x.device}, where fp32 products are faster"
    (N, K), M = weight.shape, x.numel() // x.shape[-1]
    if M < FEWEST_ROWS or N % 8 or K % 8:
        return f"expected {FEWEST_ROWS} rows or more, outputs and inputs in multiples of 8; got {M}, {N} and {K}"
    return None


def int_mm(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: str) -> Tensor:
    """Sums of int32 by ``torch._int_mm``."""
    numbers, scales = round_rows(x.reshape(-1, x.shape[-1]), torch.int8)
    y = finish(torch._int_mm(numbers, weight.T).float(), scales, scale, bias, residual, gelu)
    return y.to(x.dtype).reshape(*x.shape[:-1], len(weight))


def why_not_scaled_mm(x: Tensor, weight: Tensor, *others: object) -> str | None:
    """None where ``torch._scaled_mm`` takes these inputs with a scale a row and an output, else the reason."""
    if weight.dtype is not torch.float8_e4m3fn or x.dtype is not torch.bfloat16:
        return f"expected x in bf16 and a weight in fp8; got {x.dtype} and {weight.dtype}"
    if not x.is_cuda:
        return f"expected tensors on a CUDA device; got {x.device}"
    if not capability_at_least(x, SCALED_CAPABILITY):
        return "expected compute capability 9.0 or above, where the library's product takes a scale a row"
    N, K = weight.shape
    return f"expected outputs and inputs in multiples of 16; got {N} and {K}" if N % 16 or K % 16 else None


def scaled_mm(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: str
) -> Tensor:
    """By ``torch._scaled_mm``, which rounds to bf16; bias and GELU are an op of their own, with a choice of its own."""
    numbers, scales = round_rows(x.reshape(-1, x.shape[-1]), torch.float8_e4m3fn)
    y = torch._scaled_mm(numbers, weight.T, scales[:, None], scale[None, :].contiguous(), out_dtype=x.dtype)
    y = y.reshape(*x.shape[:-1], len(weight))
    return after_rounding(y, bias, residual, gelu)


def after_rounding(y: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: str) -> Tensor:
    """What follows a product that is rounded to y's dtype, step by step in that dtype."""
    if gelu != "none":
        y = bias_gelu(y, bias, gelu)  # type: ignore[arg-type]
    elif bias is not None:
        y = y + bias
    return y if residual is None else y + residual


def widened(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: str
) -> Tensor:
    """By fp32 products of numbers widened in memory: those of int8 in pieces that fp32 sums exactly."""
    numbers, scales = round_rows(x.reshape(-1, x.shape[-1]), weight.dtype)
    if weight.dtype is torch.int8:
        whole = torch.zeros(len(numbers), len(weight), dtype=torch.int32, device=x.device)
        for mine, theirs in zip(numbers.split(WHOLE, dim=1), weight.split(WHOLE, dim=1), strict=True):
            whole += (mine.float() @ theirs.float().T).to(torch.int32)
        sums = whole.float()
    else:
        sums = numbers.float() @ weight.float().T
    y = finish(sums, scales, scale, bias, residual, gelu)
    return y.to(x.dtype).reshape(*x.shape[:-1], len(weight))
