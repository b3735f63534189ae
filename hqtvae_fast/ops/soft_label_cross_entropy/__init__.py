"""Cross-entropy against soft labels, the softmax of a code's nearness (table 5, "soft labels")."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hqtvae_fast.ops.soft_label_cross_entropy import reference


def soft_label_cross_entropy(logits: Tensor, z: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """Mean over rows of -sum_k softmax(-|z - e|^2 / temperature)_k log softmax(logits)_k.

    ``logits`` [N, K], floating point; ``z`` [N, C], what the quantiser saw, and ``codebook`` [K, C], both of one
    floating dtype; all on one device; ``temperature`` > 0 in units of squared distance. Returns a scalar, fp32 or, for
    fp64 logits, fp64. Distances are taken in the precision of ``z``, under autocast too. The gradient goes to
    ``logits`` alone, once: labels are constants. The N x K labels are never held together. Raises ValueError on other
    shapes, dtypes or temperatures.
    """
    N, K = logits.shape if logits.ndim == 2 else (0, 0)
    if N == 0 or K == 0:
        raise ValueError(f"logits: expected [N, K], at least one row and one code; got {list(logits.shape)}")
    if z.ndim != 2 or codebook.ndim != 2 or (len(z), len(codebook)) != (N, K) or z.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"z and codebook: expected [{N}, C] and [{K}, C] for logits [{N}, {K}]; "
            f"got {list(z.shape)} and {list(codebook.shape)}"
        )
    if not logits.is_floating_point() or not z.is_floating_point() or z.dtype != codebook.dtype:
        raise ValueError(
            f"expected floating logits, and z and codebook of one floating dtype; "
            f"got {logits.dtype}, {z.dtype} and {codebook.dtype}"
        )
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected a number > 0; got {temperature}")
    return _SoftLabelCrossEntropy.apply(logits, z, codebook, temperature)


class _SoftLabelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, z: Tensor, codebook: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, z, codebook)
        ctx.temperature = temperature
        with torch.autocast(logits.device.type, enabled=False):
            return reference.loss(logits, z, codebook, temperature)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, z, codebook = ctx.saved_tensors
        with torch.autocast(logits.device.type, enabled=False):
            return reference.gradient(grad, logits, z, codebook, ctx.temperature), None, None, None


__all__ = ["soft_label_cross_entropy"]
