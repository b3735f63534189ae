"""Keys and values in 8 bits: how they are rounded and kept, and attention over them in plain torch.

A head's key (or value) at one position is E whole numbers from -127 to 127 and one scale in fp32: its largest |value|
times 1/127; each number is value * (1 / scale) to the nearest, ties to even. Where the scale would be below fp32's
least normal number it is 0, and so are the numbers. Of a vector with a NaN or an infinity the scale is NaN and the
numbers are 0, so that whatever sees it is NaN. All of this is fp32, whatever the values are in: every backend keeps the
same bits. (Scales in fp16 would save 2 of 68 bytes, and reach less far than bf16's values.)
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127.0


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., E], floating, as int8 [..., E] and scales fp32 [...]."""
    wide = x.float()
    scales = wide.abs().amax(dim=-1) * (1 / LARGEST)
    scales = scales.masked_fill(scales < torch.finfo(torch.float32).tiny, 0)
    scales = scales.masked_fill(~scales.isfinite(), float("nan"))
    inverse = torch.where(scales > 0, scales.reciprocal(), 0).unsqueeze(-1)
    numbers = (wide * inverse).clamp(-LARGEST, LARGEST).round()
    return numbers.masked_fill(inverse == 0, 0).to(torch.int8), scales


def write(keys: Tensor, values: Tensor, scales: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, places_T: Tensor) -> None:
    """Round T new keys and values into a cache, int8 [B, H, C, E] each, and scales fp32 [2, B, H, C], keys' first."""
    for kept, own, x in ((keys, scales[0], k_BHTE), (values, scales[1], v_BHTE)):
        numbers, scale = rounded(x)
        kept.index_copy_(2, places_T, numbers)
        own.index_copy_(2, places_T, scale)


def append(
    qkv_BT3HE: Tensor, bias: Tensor | None, keys: Tensor, values: Tensor, scales: Tensor, start: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Write the new positions from ``start`` on; their queries [B, H, T, E], and what they see of the cache, [1, C]."""
    _, T, _, H, E = qkv_BT3HE.shape
    if bias is not None:
        qkv_BT3HE = qkv_BT3HE + bias.view(3, H, E)
    q_BHTE, k_BHTE, v_BHTE = qkv_BT3HE.permute(2, 0, 3, 1, 4).unbind(0)
    places_C = torch.arange(keys.shape[2], dtype=torch.int64, device=keys.device)
    write(keys, values, scales, k_BHTE, v_BHTE, start + places_C[:T])
    return q_BHTE, (places_C < start + T)[None]


def attend(q_BHTE: Tensor, keys: Tensor, values: Tensor, scales: Tensor, seen_1C: Tensor) -> Tensor:
    """Of queries as they are, over numbers: scales come to the scores and to the weights. [B, H, T, E] in fp32, or in
    the queries' float64."""
    wide = torch.promote_types(q_BHTE.dtype, torch.float32)
    k_scales, v_scales = scales.masked_fill(~seen_1C, 0).to(wide).unsqueeze(3).unbind(0)  # [B, H, 1, C] each
    scores_BHTC = (q_BHTE.to(wide) @ keys.to(wide).transpose(2, 3)) * (k_scales * q_BHTE.shape[-1] ** -0.5)
    weights_BHTC = scores_BHTC.masked_fill(~seen_1C, float("-inf")).softmax(dim=-1)
    return (weights_BHTC * v_scales) @ values.to(wide)
