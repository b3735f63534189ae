"""GroupNorm, then x*sigmoid(x): what stands before every convolution of the autoencoder."""

from __future__ import annotations

from typing import Any

from torch import (
    Tensor,
    channels_last,
    contiguous_format,
    empty_like,
    float32,
    is_grad_enabled,
    memory_format,
    ops,
    promote_types,
)

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.group_norm_silu import native, reference, torch, triton
from hqtvae_fast.ops.kernels.round_map import FORMS, Rounding
from hqtvae_fast.ops.operator import dispatched, operator


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int = 32,
    eps: float = 1e-6,
    *,
    silu: bool = True,
    shift: Tensor | None = None,
    rounding: Rounding | None = None,
    backend: str | None = None,
) -> Tensor:
    """silu(GroupNorm(x)), or GroupNorm(x) alone: [B, C, H, W] in the dtype and memory layout of x.

    ``x`` [B, C, H, W], floating point, at least one pixel; ``weight`` and ``bias`` [C], of any floating dtype, on its
    device. Statistics are of all pixels and the C / ``num_groups`` neighbouring channels of a group, taken in fp32 (in
    fp64 for fp64) as squares of differences from a mean: an offset of hundreds of deviations costs no more than in x
    itself. What is kept for the backward pass is x and two numbers a group.

    ``shift`` [C], for inference alone: of x + shift instead, a bias that costs no pass of its own. torch's convolutions
    on a GPU (cuDNN's) write their output, then read and write it all again for their bias: in the decoder of preset S
    107 MB an image in bf16, 32 us of an H100's 3.35 TB/s. There the decoder leaves its biases to the next norm. On a
    CPU the convolutions add them before they write.

    ``rounding``, for inference alone: the result in 8 bits, as :func:`hqtvae_fast.ops.round_map` gives it of the
    result in x's dtype, which is never in memory: a byte a value is written where it was two or four.

    ``backend``: "triton" (CUDA, channels-last), "triton/8192x8" and other tiles (values x warps), "native" (CPU,
    channels-last, compiled), "torch" (anywhere: torch's, of NCHW copies), "reference" (anywhere). Triton and native
    give an image the same result in any batch. Raises ValueError on other shapes or dtypes, and BackendError where the
    backend asked for cannot run.
    """
    _check(x, weight, bias, num_groups)
    return _run(x, None, weight, bias, num_groups, eps, silu, shift, rounding, backend)[0]


def add_group_norm_silu(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int = 32,
    eps: float = 1e-6,
    *,
    silu: bool = True,
    shift: Tensor | None = None,
    rounding: Rounding | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """x + residual (+ shift), and :func:`group_norm_silu` of that sum: additions cost no pass over memory of their own.

    ``residual``: as ``x`` in shape, dtype and device. Both results have the layout of x; ``rounding`` is of the second.
    """
    _check(x, weight, bias, num_groups)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"residual: expected {x.dtype} {list(x.shape)} as x; got {residual.dtype} {list(residual.shape)}"
        )
    y, total, _, _ = _run(x, residual, weight, bias, num_groups, eps, silu, shift, rounding, backend)
    return total, y


def _check(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int) -> None:
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x: expected [B, C, H, W], none of them 0; got {list(x.shape)}")
    C = x.shape[1]
    if num_groups < 1 or C % num_groups:
        raise ValueError(f"num_groups: expected a divisor of {C} channels; got {num_groups}")
    if tuple(weight.shape) != (C,) or tuple(bias.shape) != (C,):
        raise ValueError(f"weight and bias: expected [{C}]; got {list(weight.shape)} and {list(bias.shape)}")
    if not (x.is_floating_point() and weight.is_floating_point() and bias.is_floating_point()):
        raise ValueError(f"expected floating dtypes; got {x.dtype}, {weight.dtype} and {bias.dtype}")


def _check_shift(shift: Tensor, x: Tensor) -> None:
    if tuple(shift.shape) != (x.shape[1],) or not shift.is_floating_point():
        raise ValueError(f"shift: expected floating [{x.shape[1]}]; got {shift.dtype} {list(shift.shape)}")


def _check_inference(what: str, *tensors: Tensor | None) -> None:
    if is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise ValueError(f"{what}: expected inference; got tensors that require gradients")


def _run(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None,
    rounding: Rounding | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = _dense(x)
    if residual is not None:
        residual = residual.contiguous(memory_format=_layout(x))
    if shift is not None:
        _check_shift(shift, x)
        _check_inference("shift", x, shift, residual)
    inputs = (x, residual, weight, bias, num_groups, eps, silu, shift)
    if rounding is None:
        name = choose("group_norm_silu", BACKENDS, *inputs, backend=backend).backend.name
        return ops.hqtvae_fast.group_norm_silu(*inputs, None, 1.0, 0, name)
    rounding.check()
    _check_inference("rounding", x, weight, bias, residual)
    name = choose("group_norm_silu", BACKENDS, *inputs, rounding.form, backend=backend).backend.name
    return ops.hqtvae_fast.group_norm_silu(*inputs, rounding.form, rounding.scale, rounding.zero, name)


BACKENDS = (
    *with_tiles("triton", triton.forward, triton.why_not, triton.TILES),
    Backend("native", native.forward, native.why_not),
    Backend("reference", reference.forward),
    Backend("torch", torch.forward),
)
_BACKWARD = {
    "triton": triton.backward,
    "native": native.backward,
    "reference": reference.backward,
    "torch": reference.backward,
}
"""By the part of the backend's name that is not a tile's."""


# The backend is chosen outside and named to the operators: a fake has no device to choose by. An operator may not
# return its input: without a residual the sum is empty, and x is what the backward pass needs.
@dispatched("group_norm_silu", BACKENDS, mutates_args=())
def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None,
    form: str | None,
    scale: float,
    zero: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x.new_empty(0) if residual is None else empty_like(x)
    wide = promote_types(x.dtype, float32)
    mean, rstd = (x.new_empty(len(x), num_groups, dtype=wide) for _ in range(2))
    return empty_like(x, dtype=x.dtype if form is None else FORMS[form].dtype), total, mean, rstd


@operator("group_norm_silu_backward", mutates_args=())
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _BACKWARD[backend.partition("/")[0]](
        dy.to(x.dtype).contiguous(memory_format=_layout(x)), x, weight, bias, mean, rstd, silu
    )


@_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_like(x), empty_like(weight), empty_like(bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, _, _, ctx.silu, _, _, _, _, ctx.backend = inputs
    _, total, mean, rstd = output
    ctx.save_for_backward(x if residual is None else total, weight, bias, mean, rstd)
    ctx.has_residual = residual is not None
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dtotal: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    """Of x, residual, weight and bias; a second derivative raises RuntimeError."""
    x, weight, bias, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias = dtotal if ctx.has_residual else None, None, None
    if dy is not None:
        dx, dweight, dbias = ops.hqtvae_fast.group_norm_silu_backward(
            dy, x, weight, bias, mean, rstd, ctx.silu, ctx.backend
        )
        if ctx.has_residual and dtotal is not None:
            dx = dx + dtotal
    return dx, dx if ctx.has_residual else None, dweight, dbias, *[None] * 8


_forward.register_autograd(_gradients, setup_context=_setup_context)


def _layout(x: Tensor) -> memory_format:
    return channels_last if x.is_contiguous(memory_format=channels_last) else contiguous_format


def _dense(x: Tensor) -> Tensor:
    """In one of the two layouts; a slice of a map is copied to channels-last."""
    known = x.is_contiguous() or x.is_contiguous(memory_format=channels_last)
    return x if known else x.contiguous(memory_format=channels_last)


__all__ = ["add_group_norm_silu", "group_norm_silu"]
