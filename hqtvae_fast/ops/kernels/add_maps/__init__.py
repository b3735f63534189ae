"""A map, what a block adds to it, and the bias that its last convolution left out, in one pass."""

from __future__ import annotations

from torch import Tensor, channels_last, empty_like, ops

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.add_maps import reference, torch, triton
from hqtvae_fast.ops.operator import dispatched


def add_maps(x: Tensor, residual: Tensor, shift: Tensor, *, backend: str | None = None) -> Tensor:
    """x + residual + shift: [B, C, H, W] in the dtype and channels-last memory of x, rounded once.

    ``x`` and ``residual`` [B, C, H, W] of one floating dtype; ``shift`` [C] of any floating dtype, on their device.
    What stands before an upsampling, where no norm reads the sum that could add it (:func:`add_group_norm_silu` does).
    For inference: no gradient.

    ``backend``: "triton" (CUDA, channels-last: two maps read, one written), "triton/2048x4" and other tiles (values x
    warps), "torch" (anywhere: two operations, rounded after each) or "reference" (anywhere). Raises ValueError on other
    shapes or dtypes, and BackendError where the backend asked for cannot run.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x: expected [B, C, H, W], none of them 0; got {list(x.shape)}")
    if residual.shape != x.shape or residual.dtype != x.dtype:
        wanted = f"{x.dtype} {list(x.shape)} as x"
        raise ValueError(f"residual: expected {wanted}; got {residual.dtype} {list(residual.shape)}")
    if tuple(shift.shape) != (x.shape[1],) or not (shift.is_floating_point() and x.is_floating_point()):
        wanted = f"floating dtypes and a shift of [{x.shape[1]}]"
        raise ValueError(f"expected {wanted}; got {x.dtype} and {shift.dtype} {list(shift.shape)}")
    x, residual = (y.contiguous(memory_format=channels_last) for y in (x, residual))
    choice = choose("add_maps", BACKENDS, x, residual, shift, backend=backend)
    return ops.hqtvae_fast.add_maps(x, residual, shift, choice.backend.name)


BACKENDS = (
    *with_tiles("triton", triton.add_maps, triton.why_not, triton.TILES),
    Backend("torch", torch.add_maps),
    Backend("reference", reference.add_maps),
)


@dispatched("add_maps", BACKENDS, mutates_args=())
def _add_maps(x: Tensor, residual: Tensor, shift: Tensor, backend: str) -> Tensor:
    return empty_like(x)


__all__ = ["add_maps"]
