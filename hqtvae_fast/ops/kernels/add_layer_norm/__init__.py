"""Residual, bias and LayerNorm in one pass: what lies between two products of a transformer block."""

from __future__ import annotations

from torch import Tensor, ops

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.add_layer_norm import reference, torch, triton
from hqtvae_fast.ops.operator import dispatched


def add_layer_norm(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float = 1e-5,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum s = x + added + bias, and LayerNorm(s) * weight + shift.

    ``x`` [..., D], floating point; ``added`` as x, or None; ``bias`` [D] (that of the product that gave ``added``) or
    None; ``weight`` and ``shift`` [D]; one dtype and device. Returns s and its LayerNorm, both [..., D]. Sums and
    statistics are taken in fp32 (fp64 for fp64), the variance of centred values; s is rounded to its dtype once, and it
    is the rounded s that is normalised, as the next block reads it. No gradient. Raises ValueError on other shapes.

    ``backend``: "triton" (CUDA; each value is read and written once), "triton/8-warps" and other tiles, "torch"
    (anywhere: sums rounded one by one, torch's LayerNorm) or "reference" (anywhere).
    """
    D = x.shape[-1]
    for name, vector in (("bias", bias), ("weight", weight), ("shift", shift)):
        if vector is not None and (tuple(vector.shape) != (D,) or vector.dtype != x.dtype):
            raise ValueError(f"{name}: expected {x.dtype} [{D}]; got {vector.dtype} {list(vector.shape)}")
    if added is not None and (added.shape != x.shape or added.dtype != x.dtype):
        raise ValueError(f"added: expected {x.dtype} {list(x.shape)}; got {added.dtype} {list(added.shape)}")
    inputs = (x, added, bias, weight, shift, eps)
    choice = choose("add_layer_norm", BACKENDS, *inputs, backend=backend)
    return ops.hqtvae_fast.add_layer_norm(*inputs, choice.backend.name)


BACKENDS = (
    *with_tiles("triton", triton.add_layer_norm, triton.why_not, triton.TILES),
    Backend("torch", torch.add_layer_norm),
    Backend("reference", reference.add_layer_norm),
)


@dispatched("add_layer_norm", BACKENDS, mutates_args=())
def _add_layer_norm(
    x: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


__all__ = ["add_layer_norm"]
