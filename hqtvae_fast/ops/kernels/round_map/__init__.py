"""Maps in 8 bits, by a scale that is known beforehand: what an 8-bit convolution reads."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.kernels.round_map import native, reference, triton
from hqtvae_fast.ops.kernels.round_map.reference import FORMS, Rounding
from hqtvae_fast.ops.operator import dispatched


def round_map(
    x: Tensor,
    rounding: Rounding,
    *,
    residual: Tensor | None = None,
    shift: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Numbers of ``rounding.form``, [B, C, H, W] in the layout of x: x / scale to the nearest whole number (of fp8: to
    the nearest of its own), ties to even, plus zero; what lies beyond the form's numbers becomes the last of them, and
    NaN the number of 0.

    ``x`` [B, C, H, W] floating; ``residual`` as x and ``shift`` [C] are added first, each sum rounded to x's dtype, as
    torch would: the sum costs no pass over memory of its own. For inference.

    ``backend``: "triton" (CUDA, int8 and fp8; fp8 from compute capability 8.9 on), "native" (CPU, uint8 of fp32 and
    bf16, compiled) or "reference" (anywhere); all give the same numbers. Raises ValueError on other shapes, dtypes or
    forms, and BackendError where the backend asked for cannot run.
    """
    rounding.check()
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x: expected floating [B, C, H, W]; got {x.dtype} {list(x.shape)}")
    if residual is not None:
        if residual.shape != x.shape or residual.dtype != x.dtype:
            got = f"{residual.dtype} {list(residual.shape)}"
            raise ValueError(f"residual: expected {x.dtype} {list(x.shape)} as x; got {got}")
        if residual.stride() != x.stride():
            residual = torch.empty_like(x).copy_(residual)
    if shift is not None and (tuple(shift.shape) != (x.shape[1],) or not shift.is_floating_point()):
        raise ValueError(f"shift: expected floating [{x.shape[1]}]; got {shift.dtype} {list(shift.shape)}")
    inputs = (x, residual, shift, rounding.form)
    name = choose("round_map", BACKENDS, *inputs, backend=backend).backend.name
    return torch.ops.hqtvae_fast.round_map(*inputs, rounding.scale, rounding.zero, name)


BACKENDS = (
    Backend("triton", triton.round_map, triton.why_not),
    Backend("native", native.round_map, native.why_not),
    Backend("reference", reference.round_map),
)


@dispatched("round_map", BACKENDS, mutates_args=())
def _round_map(
    x: Tensor, residual: Tensor | None, shift: Tensor | None, form: str, scale: float, zero: int, backend: str
) -> Tensor:
    return torch.empty_like(x, dtype=FORMS[form].dtype)


__all__ = ["FORMS", "Rounding", "round_map"]
