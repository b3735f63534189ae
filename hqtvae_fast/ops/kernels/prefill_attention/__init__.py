"""Causal attention over a whole prefix at once, which fills the cache: a text before the first code (section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.decode_attention import check_scales, int8
from hqtvae_fast.ops.kernels.prefill_attention import flash_attn, sdpa, xformers
from hqtvae_fast.ops.operator import operator


def prefill_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Write T keys and values into an empty cache, and attend: position t sees positions 0 .. t.

    ``qkv`` [B, T, 3, H, E], as one projection gives it, to which ``bias`` [3 * H * E] is added, if there is one;
    ``keys`` and ``values`` [B, H, C, E] with C >= T get the new ones from position 0 on. Scale E^-1/2. Returns
    [B, T, H * E]. One floating dtype. No gradient. Raises ValueError on other shapes.

    ``scales``: None, or fp32 [2, B, H, C], written too: then ``keys`` and ``values`` are int8, and get the new ones as
    :mod:`hqtvae_fast.ops.kernels.decode_attention.int8` rounds them. The positions of the prefix see each other as they
    are, unrounded, by whichever backend; what comes after them sees them rounded.

    ``backend``: "sdpa" (anywhere: torch's scaled_dot_product_attention, whose own choice on a GPU is FlashAttention for
    bf16 and fp16), "sdpa/flash", "sdpa/efficient", "sdpa/cudnn" or "sdpa/math" (one of its kernels), "flash_attn" or
    "xformers" (where installed, bf16 and fp16 on CUDA). One call a drawing and layer: the order says what is always
    there, not what was measured to be faster.
    """
    B, T, three, H, E = qkv.shape if qkv.ndim == 5 else (0, 0, 0, 0, 0)
    if three != 3:
        raise ValueError(f"qkv: expected [B, T, 3, H, E]; got {list(qkv.shape)}")
    if bias is not None and (tuple(bias.shape) != (3 * H * E,) or bias.dtype != qkv.dtype):
        raise ValueError(f"bias: expected {qkv.dtype} [{3 * H * E}]; got {bias.dtype} {list(bias.shape)}")
    C = keys.shape[2] if keys.ndim == 4 else 0
    if keys.shape != (B, H, C, E) or values.shape != keys.shape or C < T:
        raise ValueError(
            f"keys and values: expected [{B}, {H}, C, {E}] with C >= {T}; "
            f"got {list(keys.shape)} and {list(values.shape)}"
        )
    check_scales(scales, keys, values)
    choice = choose("prefill_attention", BACKENDS, qkv, bias, keys, values, scales, backend=backend)
    return torch.ops.hqtvae_fast.prefill_attention(qkv, bias, keys, values, scales, choice.backend.name)


BACKENDS = (
    *with_tiles("sdpa", sdpa.attend, sdpa.why_not, sdpa.KERNELS),
    Backend("flash_attn", flash_attn.attend, flash_attn.why_not),
    Backend("xformers", xformers.attend, xformers.why_not),
)
_BY_NAME = {backend.name: backend for backend in BACKENDS}


@operator("prefill_attention", mutates_args=("keys", "values", "scales"))
def _attend(
    qkv: Tensor, bias: Tensor | None, keys: Tensor, values: Tensor, scales: Tensor | None, backend: str
) -> Tensor:
    B, T, _, H, E = qkv.shape
    if bias is not None:
        qkv = qkv + bias.view(3, H, E)
    k_BHTE, v_BHTE = (qkv[:, :, part].transpose(1, 2) for part in (1, 2))
    if scales is None:
        keys[:, :, :T].copy_(k_BHTE)
        values[:, :, :T].copy_(v_BHTE)
    else:
        int8.write(keys, values, scales, k_BHTE, v_BHTE, torch.arange(T, dtype=torch.int64, device=qkv.device))
    return _BY_NAME[backend].run(qkv).reshape(B, T, H * E)


@_attend.register_fake
def _(qkv: Tensor, bias: Tensor | None, keys: Tensor, values: Tensor, scales: Tensor | None, backend: str) -> Tensor:
    B, T, _, H, E = qkv.shape
    return qkv.new_empty(B, T, H * E)


__all__ = ["prefill_attention"]
