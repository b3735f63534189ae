"""Attention among the few local positions of one token: the prediction head's passes (eq. 11-14) and IET's (eq. 6)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.local_attention import reference, sdpa, triton
from hqtvae_fast.ops.operator import dispatched

MASKS = ("full", "levels")


def local_attention(
    qkv: Tensor,
    bias: Tensor | None = None,
    keys: Tensor | None = None,
    values: Tensor | None = None,
    start: int = 0,
    *,
    mask: Literal["full", "levels"] = "full",
    backend: str | None = None,
) -> Tensor:
    """Attend over the local positions 0 .. start + T - 1, of which the last T are new.

    ``qkv`` [B, T, P, H, E], contiguous: queries, keys and values (P = 3) of the new positions, as one projection gives
    them, to which ``bias`` [P * H * E] is added, if there is one. ``keys`` and ``values`` [B, H, C, E], contiguous,
    hold those of positions 0 .. start - 1 and get the new ones; without them start is 0 and nothing is kept. ``mask``:
    "full", or "levels": position p sees the positions of its own level and of coarser ones (0; 1-4; 5-20). Scale
    E^-1/2. Returns [B, T, H * E], which the output projection reads. One floating dtype; scores and sums in fp32 (fp64
    for fp64); new keys and values are rounded to the dtype before they are used, as the cached ones are. No gradient.
    Position 0 alone sees itself: its output is its value, and ``qkv`` may come without its query (P = 2). Raises
    ValueError on other shapes.

    ``backend``: "triton" (CUDA; at most 32 positions, heads of at most 128), "triton/2-warps" and other tiles, "sdpa"
    (anywhere: torch's scaled_dot_product_attention) or "reference" (anywhere).
    """
    B, T, parts, H, E = qkv.shape if qkv.ndim == 5 else (0, 0, 0, 0, 0)
    if parts not in (2, 3) or not qkv.is_contiguous():
        raise ValueError(f"qkv: expected contiguous [B, T, 3, H, E]; got {list(qkv.shape)}")
    if parts == 2 and start + T != 1:
        raise ValueError(f"qkv: expected queries where there is more than one position; got {start + T} and none")
    if mask not in MASKS:
        raise ValueError(f"mask: expected one of {', '.join(MASKS)}; got {mask!r}")
    if bias is not None and (tuple(bias.shape) != (parts * H * E,) or bias.dtype != qkv.dtype):
        raise ValueError(f"bias: expected {qkv.dtype} [{parts * H * E}]; got {bias.dtype} {list(bias.shape)}")
    if (keys is None) != (values is None) or (keys is None and start != 0):
        raise ValueError("expected both keys and values, or neither and start = 0")
    for cache in (keys, values):
        if cache is not None:
            _check_cache(cache, (B, H, E), start + T, qkv.dtype)
    inputs = (qkv, bias, keys, values, start, mask)
    choice = choose("local_attention", BACKENDS, *inputs, backend=backend)
    return torch.ops.hqtvae_fast.local_attention(*inputs, choice.backend.name)


def _check_cache(cache: Tensor, sizes: tuple[int, int, int], positions: int, dtype: torch.dtype) -> None:
    B, H, E = sizes
    fits = cache.ndim == 4 and (*cache.shape[:2], cache.shape[3]) == sizes and cache.shape[2] >= positions
    if not fits or cache.dtype != dtype or not cache.is_contiguous():
        raise ValueError(
            f"keys and values: expected contiguous {dtype} [{B}, {H}, C, {E}] with C >= {positions}; "
            f"got {cache.dtype} {list(cache.shape)}"
        )


BACKENDS = (
    *with_tiles("triton", triton.local_attention, triton.why_not, triton.TILES),
    Backend("sdpa", sdpa.local_attention),
    Backend("reference", reference.local_attention),
)


@dispatched("local_attention", BACKENDS, mutates_args=("keys", "values"))
def _attend(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor | None,
    values: Tensor | None,
    start: int,
    mask: str,
    backend: str,
) -> Tensor:
    B, T, _, H, E = qkv.shape
    return qkv.new_empty(B, T, H * E)


__all__ = ["local_attention"]
