"""Maps and weights in 8 bits: int8 and fp8 (e4m3), and their scales."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Of the numbers of a format; int8's -128 is left out, so that both signs are alike."""


def quantize(x: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] as the nearest numbers of ``dtype`` times ``scales``, one for each C / len(scales) neighbouring
    channels; what lies beyond the largest number becomes it. Ties go to even."""
    limit, size = LARGEST[dtype], x.shape[1] // len(scales)
    scaled = x.float() / scales.repeat_interleave(size)[:, None, None]
    scaled = scaled.clamp_(-limit, limit)
    return (scaled.round_() if dtype is torch.int8 else scaled).to(dtype)


def quantize_weights(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[N, C, t, t] as numbers of ``dtype`` in channels-last memory, and a scale [N] for each output channel: its
    largest weight becomes the format's largest number."""
    scales = weight.float().abs().amax(dim=(1, 2, 3)).clamp_(min=1e-12) / LARGEST[dtype]
    numbers = weight.float() / scales[:, None, None, None]
    numbers = numbers.round() if dtype is torch.int8 else numbers
    return numbers.to(dtype).contiguous(memory_format=torch.channels_last), scales


BORDERS = 16


def borders(H: int, W: int, device: torch.device) -> Tensor:
    """int64 [H, W]: at which borders of its map a pixel lies: 1 the first row, 2 the last, 4 and 8 the columns."""
    row, column = (torch.arange(size, device=device, dtype=torch.int64) for size in (H, W))
    rows, columns = (((own == 0).long(), (own == len(own) - 1).long()) for own in (row, column))
    return (rows[0] + 2 * rows[1])[:, None] + (4 * columns[0] + 8 * columns[1])


def zero_offsets(numbers: Tensor, zero: int) -> Tensor:
    """int32 [16, len(numbers)]: what a map whose 0 is the number ``zero`` has too much in each sum of a pixel, by its
    borders (:func:`borders`): ``zero`` times the weights that fall on pixels, for beyond the map lies the number 0.

    ``numbers``: int8 weights [N, C, 3, 3], or [4 * N, C, 2, 2] of a folded upsampling, whose phase says on which side
    of its pixel each tap lies."""
    taps = numbers.shape[-1]
    sums = numbers.sum(dim=1, dtype=torch.int32)  # [rows, taps, taps]
    code = torch.arange(BORDERS, device=numbers.device, dtype=torch.int64)
    first = torch.zeros(len(numbers), 2, dtype=torch.int64, device=numbers.device)  # where the first tap lies
    first -= 1
    if taps == 2:
        phase = torch.arange(4, device=numbers.device, dtype=torch.int64).repeat_interleave(len(numbers) // 4)
        first += torch.stack([phase // 2, phase % 2], dim=1)
    held = []
    for axis in range(2):
        place = first[None, :, axis, None] + torch.arange(taps, device=numbers.device, dtype=torch.int64)
        before, behind = (code >> 2 * axis) & 1, (code >> 2 * axis + 1) & 1
        beyond = ((place < 0) & (before == 1)[:, None, None]) | ((place > 0) & (behind == 1)[:, None, None])
        held.append(torch.logical_not(beyond))  # [16, rows, taps]
    within = held[0][:, :, :, None] & held[1][:, :, None, :]
    return zero * (within * sums).sum(dim=(2, 3), dtype=torch.int32)
