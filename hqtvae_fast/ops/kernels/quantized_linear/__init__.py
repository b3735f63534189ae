"""A product of 8-bit numbers on tensor cores: weights rounded once, rows as they come, for more rows than a skinny
product's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, float32, ops

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.quantized_linear import reference, torch, triton
from hqtvae_fast.ops.operator import dispatched

GeluForm = Literal["none", "exact", "sigmoid"]
GELU: tuple[GeluForm, ...] = ("none", "exact", "sigmoid")


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: GeluForm = "none",
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """gelu(x (weight * scale)^T + bias) + residual, [..., N] in x's dtype, with x rounded to 8 bits too.

    ``x`` [..., K], fp32, bf16 or fp16; ``weight`` [N, K], int8 (-127 to 127) or fp8 (e4m3), with ``scale`` fp32 [N],
    one an output (:func:`hqtvae_fast.ops.kernels.skinny_linear.reference.quantize`); ``bias`` [N] and ``residual``
    [..., N] as x, or None; ``gelu``: "none", "exact" or "sigmoid". No gradient.

    Each row of x becomes numbers of the weight's dtype times one scale: with a its largest magnitude, or 2^-100 where
    that is more, scale = a / 127 and number = round(x * (127 / a)), ties to even (fp8: 448, to the nearest number of
    e4m3; nothing is beyond the largest); quotients and products in fp32. A row of zeros gives zeros, so its outputs are
    gelu(bias) + residual. A row that holds an infinity or NaN gives NaN. The output is sum * scale of the row * scale
    of the output, then bias, GELU and residual, each in fp32, rounded once.

    Sums of int8 are whole, in int32: the same in every backend and order, so that a row's bits depend on nothing but
    the row, with a GELU on the backend too. Sums of fp8 are fp32's: exact and rounded once in "reference", in others in
    an order that depends on K and the variant (of "triton" by itself and of libraries, on what is chosen for so many
    rows), not on what is in the rows beside one; tensor cores are reported to keep 14 bits of a sum, so that ours add
    every 128 inputs to one in fp32. "torch/scaled_mm" rounds to bf16 before the bias, and again after it and the GELU.

    ``backend``: "triton" (CUDA; fp8 from compute capability 8.9 on; rows are rounded by one kernel and multiplied by
    another), "triton/128x128x128" and other tiles (rows x outputs x inputs a step, then in how many parts of the inputs
    that a third kernel adds up), "torch/int_mm" (CUDA, int8; more than 16 rows, N and K multiples of 8),
    "torch/scaled_mm" (fp8, bf16; compute capability 9.0, N and K multiples of 16), "torch" (anywhere: fp32 products of
    widened numbers) or "reference" (anywhere). Raises ValueError on other shapes or dtypes.
    """
    if x.shape[-1:] != weight.shape[1:] or weight.ndim != 2 or not 1 <= weight.shape[1] <= reference.MOST_INPUTS:
        got = f"{list(x.shape)} and {list(weight.shape)}"
        raise ValueError(f"x and weight: expected [..., K] and [N, K], K 1 to {reference.MOST_INPUTS}; got {got}")
    if x.dtype not in reference.INPUTS or weight.dtype not in reference.LARGEST:
        raise ValueError(f"expected x in fp32, bf16 or fp16, a weight in int8 or fp8; got {x.dtype} and {weight.dtype}")
    N = len(weight)
    for name, tensor, shape, dtype in (
        ("scale", scale, (N,), float32),
        ("bias", bias, (N,), x.dtype),
        ("residual", residual, (*x.shape[:-1], N), x.dtype),
    ):
        if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype != dtype):
            raise ValueError(f"{name}: expected {dtype} {list(shape)}; got {tensor.dtype} {list(tensor.shape)}")
    if gelu not in GELU:
        raise ValueError(f"gelu: expected one of {', '.join(GELU)}; got {gelu!r}")
    inputs = (x, weight, scale, bias, residual, gelu)
    choice = choose("quantized_linear", BACKENDS, *inputs, backend=backend)
    return ops.hqtvae_fast.quantized_linear(*inputs, choice.backend.name)


BACKENDS = (
    *with_tiles("triton", triton.quantized_linear, triton.why_not, triton.TILES),
    Backend("torch/int_mm", torch.int_mm, torch.why_not_int_mm),
    Backend("torch/scaled_mm", torch.scaled_mm, torch.why_not_scaled_mm),
    Backend("torch", torch.widened),
    Backend("reference", reference.quantized_linear),
)


@dispatched("quantized_linear", BACKENDS, mutates_args=())
def _quantized_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: str,
    backend: str,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))
