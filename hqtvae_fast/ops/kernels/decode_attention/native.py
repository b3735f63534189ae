"""Our own kernels for bf16 and fp32 on a CPU (csrc/cpu/attention_bf16.cpp, attention_fp32.cpp).

They are one operator of torch, ``hqtvae_fast::decode_attention_cpu``. Error against float64 on the same values: fp32
sums and exponentials (relative 3e-6 for bf16, 3e-7 for fp32), then one rounding to the dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.cpu_library import buffer, library, why_not_avx2, why_not_bf16
from hqtvae_fast.ops.operator import operators

WIDTHS = (32, 64, 96, 128)
WHY_NOT = {torch.bfloat16: why_not_bf16, torch.float32: why_not_avx2}


def why_not(
    qkv_BT3HE: Tensor,
    bias: Tensor | None = None,
    keys_BHCE: Tensor | None = None,
    values_BHCE: Tensor | None = None,
    start: int = 0,
    start_tensor: Tensor | None = None,
    scales: Tensor | None = None,
) -> str | None:
    """None where the kernel can take these queries, keys and values, else the reason."""
    if bias is not None or start_tensor is not None or scales is not None:
        return "expected no bias, no scales, and start as a number"
    if qkv_BT3HE.device.type != "cpu" or qkv_BT3HE.dtype not in WHY_NOT:
        return f"expected bf16 or fp32 on the CPU; got {qkv_BT3HE.dtype} on {qkv_BT3HE.device}"
    if qkv_BT3HE.shape[-1] not in WIDTHS:
        return f"expected heads of {WIDTHS} values; got {qkv_BT3HE.shape[-1]}"
    return WHY_NOT[qkv_BT3HE.dtype]()


def decode_attention(
    qkv_BT3HE: Tensor,
    bias: Tensor | None,
    keys_BHCE: Tensor,
    values_BHCE: Tensor,
    start: int,
    start_tensor: Tensor | None,
    scales: Tensor | None = None,
) -> Tensor:
    """As the op is called; ``bias``, ``start_tensor`` and ``scales`` are None."""
    return torch.ops.hqtvae_fast.decode_attention_cpu.default(qkv_BT3HE, keys_BHCE, values_BHCE, start)


operators.define("decode_attention_cpu(Tensor qkv, Tensor(a!) keys, Tensor(b!) values, int start) -> Tensor")


def _attend(qkv_BT3HE: Tensor, keys_BHCE: Tensor, values_BHCE: Tensor, start: int) -> Tensor:
    B, T, _, H, E = qkv_BT3HE.shape
    C = keys_BHCE.shape[2]
    if keys_BHCE.shape != (B, H, C, E) or values_BHCE.shape != keys_BHCE.shape or start + T > C:
        raise ValueError(
            f"keys and values: expected [{B}, {H}, C, {E}] with C >= {start + T};"
            f" got {list(keys_BHCE.shape)} and {list(values_BHCE.shape)}"
        )
    if not (qkv_BT3HE.is_contiguous() and keys_BHCE.is_contiguous() and values_BHCE.is_contiguous()):
        raise ValueError("qkv, keys and values: expected contiguous tensors")
    y_BTD = qkv_BT3HE.new_empty(B, T, H * E)
    scratch = torch.empty(B * H * (C + 16), dtype=torch.float32, device="cpu")
    dtype, cached, kernels = qkv_BT3HE.dtype, B * H * C * E, library()
    is_bf16 = dtype is torch.bfloat16
    (kernels.hqtvae_decode_attention_bf16 if is_bf16 else kernels.hqtvae_decode_attention_fp32)(
        *(buffer(qkv_BT3HE, dtype, B * T * 3 * H * E), buffer(keys_BHCE, dtype, cached)),
        *(buffer(values_BHCE, dtype, cached), buffer(y_BTD, dtype, B * T * H * E)),
        buffer(scratch, torch.float32, B * H * (C + 16)),
        *(B, T, H, E, C, start),
        E**-0.5,
    )
    return y_BTD


operators.impl("decode_attention_cpu", _attend, "CPU")


@torch.library.register_fake("hqtvae_fast::decode_attention_cpu")
def _fake(qkv_BT3HE: Tensor, keys_BHCE: Tensor, values_BHCE: Tensor, start: int) -> Tensor:
    B, T, _, H, E = qkv_BT3HE.shape
    return qkv_BT3HE.new_empty(B, T, H * E)
