"""A product of 8-bit numbers: weights rounded once, rows as they come."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.kernels.int8_linear import native, reference
from hqtvae_fast.ops.operator import dispatched

MOST_INPUTS = (2**31 - 1) // (255 * 127)


class Panels(NamedTuple):
    """A weight as a CPU's kernel reads it. ``packed`` int8, of csrc/cpu/linear_int8.cpp's layout; ``totals`` int32, the
    sum of each output's numbers; both up to whole panels of outputs, as ``scale`` fp32 is."""

    packed: Tensor
    scale: Tensor
    totals: Tensor


def pack(weight: Tensor, scale: Tensor) -> Panels | None:
    """Of a weight int8 [N, K] and its scale fp32 [N]; None where no kernel reads it."""
    return Panels(*native.pack(weight, scale)) if native.why_not_pack(weight) is None else None


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    panels: Panels | None = None,
    backend: str | None = None,
) -> Tensor:
    """x (weight * scale)^T + bias, or x*Phi(x) of it, [..., N] in x's dtype, with each row of x rounded to 8 bits.

    ``x`` [..., K], fp32 or bf16; ``weight`` int8 [N, K], -127 to 127, and ``scale`` fp32 [N], one an output
    (:func:`hqtvae_fast.ops.kernels.skinny_linear.reference.quantize`); ``bias`` [N] as x, or None; K at most 66,000. A
    row becomes u = round(x / s) + z, 0 to 255, s and z such that its least and largest value and 0 lie in that range
    (:func:`reference.round_rows`). Sums of u * weight are whole numbers, exact; then s * scale * (sum - z * (sum of the
    weights)) + bias in fp32. A row's result depends on nothing but the row: neither its neighbours, nor threads, nor
    the backend, except for GELU's last bits and for K > 16,000, where sums may lose a bit before they are scaled. A row
    that holds an infinity or NaN gives NaN.

    ``panels``: of :func:`pack`, for "native". ``backend``: "native" (CPU with AVX2 or AVX512-VNNI) or "reference"
    (anywhere). No gradient. Raises ValueError on other shapes or dtypes.
    """
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:] or not 1 <= weight.shape[1] <= MOST_INPUTS:
        wanted = f"[..., K] and [N, K] with K from 1 to {MOST_INPUTS}"
        raise ValueError(f"x and weight: expected {wanted}; got {list(x.shape)} and {list(weight.shape)}")
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"x: expected fp32 or bf16; got {x.dtype}")
    expected = [("weight", weight, weight.shape, torch.int8), ("scale", scale, (len(weight),), torch.float32)]
    expected += [] if bias is None else [("bias", bias, (len(weight),), x.dtype)]
    for name, tensor, shape, dtype in expected:
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
            raise ValueError(f"{name}: expected {dtype} {list(shape)}; got {tensor.dtype} {list(tensor.shape)}")
    inputs = (x, weight, scale, bias, *(panels or (None, None, None)), gelu)
    choice = choose("int8_linear", BACKENDS, *inputs, backend=backend)
    return torch.ops.hqtvae_fast.int8_linear(*inputs, choice.backend.name)


BACKENDS = (
    Backend("native", native.int8_linear, native.why_not),
    Backend("reference", reference.int8_linear),
)


@dispatched("int8_linear", BACKENDS, mutates_args=())
def _int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    packed: Tensor | None,
    padded_scale: Tensor | None,
    totals: Tensor | None,
    gelu: bool,
    backend: str,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))
