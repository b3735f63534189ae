"""Cross-entropy against soft labels, the softmax of a code's nearness (table 5, "soft labels")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.kernels.sample_logits import check_temperature
from hqtvae_fast.ops.kernels.soft_label_cross_entropy import reference, triton
from hqtvae_fast.ops.operator import operator


def soft_label_cross_entropy(
    logits: Tensor, z: Tensor, codebook: Tensor, temperature: float, *, backend: str | None = None
) -> Tensor:
    """Mean over rows of -sum_k softmax(-|z - e_k|^2 / temperature)_k log softmax(logits)_k.

    ``logits`` [N, K], floating point; ``z`` [N, C], what the quantiser saw, and ``codebook`` [K, C], both of one
    floating dtype; all on one device; ``temperature`` > 0 in units of squared distance. Returns a scalar, fp32 or, for
    fp64 logits, fp64. Distances are taken in the precision of ``z``, or a higher one, under autocast too. The gradient
    goes to ``logits`` alone, once: labels are constants. The N x K labels are never held together. A logit of -inf
    makes the loss inf, or NaN where its label is 0; its gradient is finite, unless all of a row are -inf.

    ``backend``: "triton" (CUDA; no labels in memory: besides the logits and their gradient 20 bytes a row and at most
    5 KB a code) or "reference" (anywhere; chunks of labels). Raises ValueError on other shapes, dtypes or temperatures,
    and BackendError where the backend asked for cannot run.
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
    check_temperature(temperature)
    inputs = (logits, z, codebook, temperature)
    choice = choose("soft_label_cross_entropy", BACKENDS, *inputs, backend=backend)
    return torch.ops.hqtvae_fast.soft_label_cross_entropy(*inputs, choice.backend.name)[0]


def soft_labels(z: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """The labels themselves, softmax(-|z - e_k|^2 / temperature): [N, K] of z [N, C] and codebook [K, C].

    One product and one softmax, in torch on any device: as large as the logits, for use where they are wanted whole.
    """
    with torch.autocast(z.device.type, enabled=False):
        return reference.soft_labels(z, codebook, temperature)


BACKENDS = (
    Backend("triton", triton.forward, triton.why_not),
    Backend("reference", reference.forward),
)
_BY_NAME = {backend.name: backend for backend in BACKENDS}


def _statistics(logits: Tensor, backend: str) -> Tensor:
    """Unset, in the size that the backend keeps from the forward to the backward pass: 4 numbers a row, or none."""
    return logits.new_empty((4 if backend == "triton" else 0, len(logits)), dtype=torch.float32)


# The backend is chosen outside and named to the operators: a fake has no device to choose by, and the backward pass
# must be of the backend whose statistics it gets.
@operator("soft_label_cross_entropy", mutates_args=())
def _forward(logits: Tensor, z: Tensor, codebook: Tensor, temperature: float, backend: str) -> tuple[Tensor, Tensor]:
    with torch.autocast(logits.device.type, enabled=False):
        loss, statistics = _BY_NAME[backend].run(logits, z, codebook, temperature)
    return loss.to(_wide(logits.dtype)), statistics  # fp64 z beside narrower logits would make it fp64


@_forward.register_fake
def _(logits: Tensor, z: Tensor, codebook: Tensor, temperature: float, backend: str) -> tuple[Tensor, Tensor]:
    return logits.new_empty((), dtype=_wide(logits.dtype)), _statistics(logits, backend)


@operator("soft_label_cross_entropy_backward", mutates_args=())
def _backward(
    grad: Tensor, logits: Tensor, z: Tensor, codebook: Tensor, statistics: Tensor, temperature: float, backend: str
) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        if backend == "triton":
            return triton.backward(grad, logits, z, codebook, statistics, temperature)
        return reference.gradient(grad, logits, z, codebook, temperature)


@_backward.register_fake
def _(
    grad: Tensor, logits: Tensor, z: Tensor, codebook: Tensor, statistics: Tensor, temperature: float, backend: str
) -> Tensor:
    return logits.new_empty(logits.shape) if backend == "triton" else torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, z, codebook, ctx.temperature, ctx.backend = inputs
    ctx.save_for_backward(logits, z, codebook, output[1])
    ctx.set_materialize_grads(False)  # zeros as the statistics' gradient are for nobody


def _gradients(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None, None]:
    """The backward operator has no derivative itself: a second one raises RuntimeError."""
    if grad is None or not ctx.needs_input_grad[0]:
        return None, None, None, None, None
    logits, z, codebook, statistics = ctx.saved_tensors
    gradient = torch.ops.hqtvae_fast.soft_label_cross_entropy_backward(
        grad, logits, z, codebook, statistics, ctx.temperature, ctx.backend
    )
    return gradient, None, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


_forward.register_autograd(_gradients, setup_context=_setup_context)

__all__ = ["soft_label_cross_entropy", "soft_labels"]
