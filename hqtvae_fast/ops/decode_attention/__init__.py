"""Attention of new positions over a static cache of keys and values."""

from __future__ import annotations

from torch import Tensor

from hqtvae_fast.ops.decode_attention import native, reference


def decode_attention(qkv_BT3HE: Tensor, keys_BHCE: Tensor, values_BHCE: Tensor, start: int) -> Tensor:
    """Write T new keys and values into a cache at ``start``, and attend over all that it then holds.

    ``qkv`` [B, T, 3, H, E], contiguous: queries, keys and values of the new positions, as one projection gives them;
    ``keys`` and ``values`` [B, H, C, E], contiguous, written in place; every new position sees start + T positions, of
    which there must be at most C. Scale E^-1/2. Returns [B, T, H * E], which the output projection reads. One dtype
    throughout; scores and sums in fp32 where our kernel runs (bf16 on a CPU with AVX512-BF16, E a multiple of 32 up to
    128), else as torch has them. No gradient. What the cache holds beyond is finite; it does not matter otherwise.
    """
    if native.why_not(qkv_BT3HE) is None:
        return native.decode_attention(qkv_BT3HE, keys_BHCE, values_BHCE, start)
    return reference.decode_attention(qkv_BT3HE, keys_BHCE, values_BHCE, start)


__all__ = ["decode_attention"]
