"""Torch's own attention over the cache: a start on the device is not waited for, for which all of the cache is read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.decode_attention import int8


def decode_attention(
    qkv_BT3HE: Tensor,
    bias: Tensor | None,
    keys_BHCE: Tensor,
    values_BHCE: Tensor,
    start: int,
    start_tensor: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor:
    """``start_tensor``, an int64 scalar on the device, takes the place of ``start``. With ``scales``, keys and values
    are fp32 numbers times their scales."""
    B, T, _, H, E = qkv_BT3HE.shape
    if scales is not None:
        where = start if start_tensor is None else start_tensor
        q_BHTE, seen = int8.append(qkv_BT3HE, bias, keys_BHCE, values_BHCE, scales, where)
        k_scales, v_scales = scales.masked_fill(~seen, 0).unsqueeze(-1)
        k_BHCE, v_BHCE = keys_BHCE * k_scales, values_BHCE * v_scales
        y_BHTE = F.scaled_dot_product_attention(q_BHTE.float(), k_BHCE, v_BHCE, attn_mask=seen)
        return y_BHTE.transpose(1, 2).flatten(2).to(qkv_BT3HE.dtype)
    if bias is not None:
        qkv_BT3HE = qkv_BT3HE + bias.view(3, H, E)
    q_BHTE, k_BHTE, v_BHTE = qkv_BT3HE.permute(2, 0, 3, 1, 4).unbind(0)
    if start_tensor is None:
        end, seen_1C = start + T, None
        keys_BHCE[:, :, start:end].copy_(k_BHTE)
        values_BHCE[:, :, start:end].copy_(v_BHTE)
        keys_BHCE, values_BHCE = keys_BHCE[:, :, :end], values_BHCE[:, :, :end]
    else:
        new = start_tensor + torch.arange(T, dtype=torch.int64, device=start_tensor.device)
        keys_BHCE.index_copy_(2, new, k_BHTE)
        values_BHCE.index_copy_(2, new, v_BHTE)
        seen_1C = (torch.arange(keys_BHCE.shape[2], dtype=torch.int64, device=new.device) < start_tensor + T)[None]
    y_BHTE = F.scaled_dot_product_attention(q_BHTE, keys_BHCE, values_BHCE, attn_mask=seen_1C)
    return y_BHTE.transpose(1, 2).reshape(B, T, H * E)
