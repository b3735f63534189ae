"""Bias and GELU in one pass, between the two products of an MLP."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, ops

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.bias_gelu import reference, torch, triton
from hqtvae_fast.ops.operator import dispatched

FORMS = ("exact", "sigmoid")


def bias_gelu(
    x: Tensor, bias: Tensor | None, form: Literal["exact", "sigmoid"] = "exact", *, backend: str | None = None
) -> Tensor:
    """GELU(x + bias), in x's shape and dtype, computed in fp32 (fp64 for fp64).

    ``x`` [..., D], floating point; ``bias`` [D] of the same dtype, or None; ``form``: "exact" is y * Phi(y), "sigmoid"
    y * sigmoid(1.702 y). No gradient. Raises ValueError on other shapes or forms.

    ``backend``: "triton" (CUDA; each value is read and written once), "triton/512x2" and other tiles (values x warps),
    "torch" (anywhere: rounded after each step) or "reference" (anywhere).
    """
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}; got {form!r}")
    if bias is not None and (tuple(bias.shape) != x.shape[-1:] or bias.dtype != x.dtype):
        raise ValueError(f"bias: expected {x.dtype} [{x.shape[-1]}]; got {bias.dtype} {list(bias.shape)}")
    choice = choose("bias_gelu", BACKENDS, x, bias, form, backend=backend)
    return ops.hqtvae_fast.bias_gelu(x, bias, form, choice.backend.name)


BACKENDS = (
    *with_tiles("triton", triton.bias_gelu, triton.why_not, triton.TILES),
    Backend("torch", torch.bias_gelu),
    Backend("reference", reference.bias_gelu),
)


@dispatched("bias_gelu", BACKENDS, mutates_args=())
def _bias_gelu(x: Tensor, bias: Tensor | None, form: str, backend: str) -> Tensor:
    return x.new_empty(x.shape)


__all__ = ["bias_gelu"]
