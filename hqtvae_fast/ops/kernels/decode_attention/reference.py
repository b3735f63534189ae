"""The same in plain torch, on any device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.decode_attention import int8, sdpa

SMALL = 1 << 14
"""Values of an image's keys, the buffer's unused end included, up to which a CPU runs torch's attention: of the demo
model (8 x 3 heads of 64 to 31 positions) a layer's share takes 20 us so and 50 by two products (fp32, one core of an
EPYC)."""


def decode_attention(
    qkv_BT3HE: Tensor,
    bias: Tensor | None,
    keys_BHCE: Tensor,
    values_BHCE: Tensor,
    start: int,
    start_tensor: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor:
    """As :mod:`.sdpa`, which it is but on a CPU: there a start on the device is a number. With ``scales`` as
    :mod:`.int8`, everywhere."""
    if scales is not None:
        where = start if start_tensor is None else start_tensor
        q_BHTE, seen_1C = int8.append(qkv_BT3HE, bias, keys_BHCE, values_BHCE, scales, where)
        y_BHTE = int8.attend(q_BHTE, keys_BHCE, values_BHCE, scales, seen_1C)
        return y_BHTE.transpose(1, 2).flatten(2).to(qkv_BT3HE.dtype)
    if qkv_BT3HE.device.type != "cpu":
        return sdpa.decode_attention(qkv_BT3HE, bias, keys_BHCE, values_BHCE, start, start_tensor)
    B, T, _, H, E = qkv_BT3HE.shape
    if bias is not None:
        qkv_BT3HE = qkv_BT3HE + bias.view(3, H, E)
    q_BHTE, k_BHTE, v_BHTE = qkv_BT3HE.permute(2, 0, 3, 1, 4).unbind(0)
    start = start if start_tensor is None else int(start_tensor)
    end = start + T
    keys_BHCE[:, :, start:end].copy_(k_BHTE)
    values_BHCE[:, :, start:end].copy_(v_BHTE)
    y_BHTE = _few_queries(q_BHTE, keys_BHCE, values_BHCE, end)
    return y_BHTE.transpose(1, 2).reshape(B, T, H * E)


def _few_queries(q_BHTE: Tensor, k_BHCE: Tensor, v_BHCE: Tensor, positions: int) -> Tensor:
    """Two batched products on a CPU.

    One layer's share of a step takes 0.4 ms, weights and caches cold, where scaled_dot_product_attention's blocked
    kernel takes 0.6-1.0: that kernel pays for a block of queries (bf16, one query, 32-64 positions, 8 x 24 heads of 64;
    2 cores of an EPYC). The products read the whole buffer and the softmax drops its unused end: of a part of it,
    oneDNN would make a dense copy first, which costs more from the second position on.
    """
    if positions == 1:  # one key has all the weight: position 0 of the head, and of the body
        return v_BHCE[:, :, :1].expand_as(q_BHTE)
    if k_BHCE[0].numel() <= SMALL:
        return F.scaled_dot_product_attention(q_BHTE, k_BHCE[:, :, :positions], v_BHCE[:, :, :positions])
    scores_BHTC = (q_BHTE * q_BHTE.shape[-1] ** -0.5) @ k_BHCE.transpose(2, 3)
    scores_BHTC[..., positions:] = float("-inf")
    return scores_BHTC.softmax(dim=-1) @ v_BHCE
