"""Attention of new positions over a static cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.decode_attention import native, reference, sdpa, triton
from hqtvae_fast.ops.operator import dispatched


def decode_attention(
    qkv_BT3HE: Tensor,
    keys_BHCE: Tensor,
    values_BHCE: Tensor,
    start: int | Tensor,
    *,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Write T new keys and values into a cache at ``start``, and attend over all that it then holds.

    ``qkv`` [B, T, 3, H, E], contiguous: queries, keys and values of the new positions, as one projection gives them, to
    which ``bias`` [3 * H * E] is added, if there is one; ``keys`` and ``values`` [B, H, C, E], contiguous, written in
    place; every new position sees start + T positions, of which there must be at most C. ``start`` is a number, or an
    int64 scalar on the device, which is read there when the kernel runs: a captured graph then goes on by itself. Scale
    E^-1/2. Returns [B, T, H * E], which the output projection reads. One dtype throughout. No gradient. What the cache
    holds beyond is finite; it does not matter otherwise.

    ``scales``: None, or fp32 [2, B, H, C], contiguous, written in place: then ``keys`` and ``values`` are int8, and
    :mod:`.int8` says what of. New ones are rounded first, and attended as they were kept: a position is the same to all
    that see it. Scores, softmax and sums are fp32.

    ``backend``: "triton" (CUDA, T = 1, heads of at most 128; fp32 scores and sums), "triton/32x2" and other tiles
    (positions x warps), with scales "triton/int8" and "triton/int8/32x1"; "sdpa" (anywhere: torch's
    scaled_dot_product_attention; with scales of fp32 copies), "native" (on a CPU, bf16 with AVX512-BF16 and fp32 with
    AVX2; no bias, no scales, a plain start, E a multiple of 32 up to 128; the same) or "reference" (anywhere, as torch
    has them). Raises ValueError on other shapes.
    """
    B, T, _, H, E = qkv_BT3HE.shape
    C, end = keys_BHCE.shape[2], (start if isinstance(start, int) else 0) + T
    if keys_BHCE.shape != (B, H, C, E) or values_BHCE.shape != keys_BHCE.shape or end > C:
        raise ValueError(
            f"keys and values: expected [{B}, {H}, C, {E}] with C >= {end};"
            f" got {list(keys_BHCE.shape)} and {list(values_BHCE.shape)}"
        )
    check_scales(scales, keys_BHCE, values_BHCE)
    fixed, moving = (start, None) if isinstance(start, int) else (0, start)
    inputs = (qkv_BT3HE, bias, keys_BHCE, values_BHCE, fixed, moving, scales)
    choice = choose("decode_attention", BACKENDS, *inputs, backend=backend)
    if choice.backend.base != "triton" and qkv_BT3HE.device.type == "cpu":
        # Plain operators of torch: a step on a CPU makes sixty calls, and ours would be wrapped around each.
        return choice.backend.run(*inputs)
    return torch.ops.hqtvae_fast.decode_attention(*inputs, choice.backend.name)


def check_scales(scales: Tensor | None, keys: Tensor, values: Tensor) -> None:
    """ValueError unless there are scales of keys and values in int8, and none of others."""
    int8 = torch.int8
    if scales is None and keys.dtype is not int8 and values.dtype is not int8:
        return
    shape = (2, *keys.shape[:3])
    if scales is None or (keys.dtype, values.dtype, scales.dtype) != (int8, int8, torch.float32):
        got = None if scales is None else scales.dtype
        raise ValueError(f"scales: expected fp32 of int8 keys and values; got {got} of {keys.dtype} and {values.dtype}")
    if scales.shape != shape:
        raise ValueError(f"scales: expected {list(shape)}; got {list(scales.shape)}")


BACKENDS = (
    *with_tiles("triton", triton.decode_attention, triton.why_not, triton.TILES),
    *with_tiles("triton/int8", triton.decode_attention_int8, triton.why_not_int8, triton.INT8_TILES),
    Backend("native", native.decode_attention, native.why_not),
    Backend("reference", reference.decode_attention),
    Backend("sdpa", sdpa.decode_attention),
)


@dispatched("decode_attention", BACKENDS, mutates_args=("keys", "values", "scales"))
def _attend(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    start: int,
    start_tensor: Tensor | None,
    scales: Tensor | None,
    backend: str,
) -> Tensor:
    B, T, _, H, E = qkv.shape
    return qkv.new_empty(B, T, H * E)


__all__ = ["check_scales", "decode_attention"]
