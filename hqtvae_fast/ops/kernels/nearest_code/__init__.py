"""Nearest-code search (eq. 1)."""

from __future__ import annotations

from torch import Tensor, autocast, int64, ops

from hqtvae_fast import _cuda
from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.nearest_code import cuda, reference, torch, triton
from hqtvae_fast.ops.operator import operator

BACKENDS = (
    Backend("cuda", cuda.nearest_code, cuda.why_not, _cuda.origin, only_by_name=True),
    *with_tiles("triton", triton.nearest_code, triton.why_not, triton.TILES),
    Backend("torch", torch.nearest_code),
    Backend("reference", reference.nearest_code),
)
_BY_NAME = {backend.name: backend for backend in BACKENDS}


def nearest_code(
    z: Tensor, codebook: Tensor, *, backend: str | None = None, check: bool = False, invalid: Tensor | None = None
) -> Tensor:
    """Index of the nearest code of each row (eq. 1).

    ``z`` [N, C] and ``codebook`` [K, C], floating point, same dtype and device; returns int64 [N]. Exact: for finite
    inputs, what comparing squared distances in float64 gives, ties to the lowest index. (Distances that differ by less
    than float64 sums resolve, about C times 1e-16 of their size, may be ordered as rounding has it.) A row that is not
    finite gives 0; ``invalid``, a bool scalar on the device of z, is set where there is such a row, without waiting for
    the device; ``check`` raises ValueError instead, and waits. ``backend``: "triton" (CUDA; tensor cores and a proven
    bound), "triton/64x64" and other tiles (rows x codes), "cuda" (likewise, from csrc/cuda; only by name), "torch" (an
    fp32 product and the same idea), "reference" (float64 brute force). Raises ValueError on other shapes, dtypes or
    devices, and BackendError where the backend asked for cannot run.
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(f"nearest_code: expected [N, C] and [K, C]; got {list(z.shape)} and {list(codebook.shape)}")
    if codebook.shape[0] == 0:
        raise ValueError("nearest_code: expected at least one code; got an empty codebook")
    if z.dtype != codebook.dtype or not z.is_floating_point():
        raise ValueError(f"nearest_code: expected one floating dtype; got {z.dtype} and {codebook.dtype}")
    if z.device != codebook.device:
        raise ValueError(f"nearest_code: expected one device; got {z.device} and {codebook.device}")
    if check and bool((wrong := not_finite(z)).any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"nearest_code: expected finite rows; row {row} holds NaN or infinity")
    if invalid is not None:
        invalid |= ~z.isfinite().all()
    choice = choose("nearest_code", BACKENDS, z, codebook, backend=backend)
    return ops.hqtvae_fast.nearest_code(z, codebook, choice.backend.name)


def not_finite(z: Tensor) -> Tensor:
    """Which of the rows or images z [B, ...] hold NaN or infinity: bool [B] on their device, without waiting for it."""
    return ~z.isfinite().flatten(1).all(dim=1)


@operator("nearest_code", mutates_args=())
def _nearest_code(z: Tensor, codebook: Tensor, backend: str) -> Tensor:
    with autocast(z.device.type, enabled=False):
        return _BY_NAME[backend].run(z, codebook)


@_nearest_code.register_fake
def _(z: Tensor, codebook: Tensor, backend: str) -> Tensor:
    return z.new_empty(len(z), dtype=int64)


__all__ = ["nearest_code", "not_finite"]
