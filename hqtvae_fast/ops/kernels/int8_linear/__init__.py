"""A product of 8-bit numbers: weights rounded once, rows as they come."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.kernels.int8_linear import native, reference
from hqtvae_fast.ops.operator import dispatched


class Panels(NamedTuple):
    """A weight as a CPU's kernel reads it: ``packed`` int8 and ``totals`` int16, the sums of each group's weights, in
    the layouts of csrc/cpu/linear_int8.cpp, and ``scale`` fp32; all up to whole panels of outputs."""

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
    """x (weight * scale)^T + bias, or x*Phi(x) of it, [..., N] in x's dtype, with the inputs rounded to 8 bits.

    ``x`` [..., K], fp32 or bf16; ``weight`` int8 [N, K], -127 to 127, and ``scale`` fp32 [N], one an output
    (:func:`hqtvae_fast.ops.kernels.skinny_linear.reference.quantize`); ``bias`` [N] as x, or None. Each 64 inputs
    become u = round(x / s) + z, 0 to 255, s and z such that their least and largest value and 0 lie in that range
    (:func:`reference.round_groups`), and add s * (sum of (u - z) * weight), whole numbers but for s; all groups in
    order, then times the scale, and the bias, in fp32. So a row's bits depend on nothing but the row: neither its
    neighbours nor threads nor the backend, except for GELU's last bits. A row that holds an infinity or NaN gives NaN.

    ``panels``: of :func:`pack`, for "native". ``backend``: "native" (CPU with AVX2 or AVX512-VNNI) or "reference"
    (anywhere). No gradient. Raises ValueError on other shapes or dtypes.
    """
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:] or not weight.shape[1]:
        raise ValueError(
            f"x and weight: expected [..., K] and [N, K], K not 0; got {list(x.shape)} and {list(weight.shape)}"
        )
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
