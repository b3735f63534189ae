"""Bringing pictures to the size that a network was trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def antialiased(images: Tensor, side: int, mode: str = "bicubic") -> Tensor:
    """uint8 or float [B, 3, H, W] in 0..255 to float32 [B, 3, side, side]; as PIL resizes, without its rounding."""
    images = images.float()
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode=mode, antialias=True, align_corners=False).clamp(0, 255)


def tensorflow_bilinear(images: Tensor, side: int) -> Tensor:
    """Bilinear as the first TensorFlow did it, which FID's weights expect: no antialiasing, corners of pixels aligned.

    Output pixel i reads input place i * R / side, between its two neighbours. The two passes are products with
    [side, R] matrices of two weights a row.
    """
    rows, columns = (_weights(length, side, images.device) for length in images.shape[-2:])
    return rows @ images.float() @ columns.T


def _weights(length: int, side: int, device: torch.device) -> Tensor:
    place = torch.arange(side, dtype=torch.float32, device=device) * (length / side)
    low = place.floor().long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    share = (place - low)[:, None]
    one = torch.eye(length, dtype=torch.float32, device=device)
    return one[low] * (1 - share) + one[high] * share
