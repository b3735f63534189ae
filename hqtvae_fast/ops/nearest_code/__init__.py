"""Nearest-code search (eq. 1)."""

from __future__ import annotations

from torch import Tensor

from hqtvae_fast.ops.nearest_code import screened


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each row (eq. 1).

    ``z`` [N, C] and ``codebook`` [K, C], floating point, same dtype and device; returns int64 [N]. Exact: for finite
    inputs, what comparing squared distances in float64 gives, ties to the lowest index. A row that is not finite gives
    some index in [0, K). Raises ValueError on other shapes or dtypes.
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(f"nearest_code: expected [N, C] and [K, C]; got {list(z.shape)} and {list(codebook.shape)}")
    if codebook.shape[0] == 0:
        raise ValueError("nearest_code: expected at least one code; got an empty codebook")
    if z.dtype != codebook.dtype or not z.is_floating_point():
        raise ValueError(f"nearest_code: expected one floating dtype; got {z.dtype} and {codebook.dtype}")
    return screened.nearest_code(z, codebook)


__all__ = ["nearest_code"]
