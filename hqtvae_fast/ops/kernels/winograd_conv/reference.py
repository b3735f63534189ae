"""The short convolution in plain torch, tile by tile as the kernel takes it; in fp64 it is the plain convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.upsample_conv.reference import interleave
from hqtvae_fast.ops.kernels.winograd_conv.transforms import TILE, matrices, tile_side


def winograd_conv(x: Tensor, transformed: Tensor, bias: Tensor, doubled: bool) -> Tensor:
    B, _, H, W = x.shape
    into, _, back = (matrix.to(x) for matrix in matrices(2 if doubled else 3))
    (side, down), (_, across) = tile_side(doubled, H), tile_side(doubled, W)
    padded = F.pad(x, (1, across * side + TILE - side - W - 1, 1, down * side + TILE - side - H - 1))
    tiles_BCYXIJ = padded.unfold(2, TILE, side).unfold(3, TILE, side)
    v = torch.einsum("pi,qj,bcyxij->pqbyxc", into, into, tiles_BCYXIJ).flatten(0, 1)
    u = transformed.transpose(1, 2).flatten(2)  # [36, C, phases * N]
    m = torch.einsum("pbyxc,pcn->pbyxn", v, u).unflatten(0, (TILE, TILE))
    y = torch.einsum("ip,jq,pqbyxn->bnyixj", back, back, m).reshape(B, -1, down * side, across * side)
    out = empty_output(x, bias, doubled)
    if not doubled:
        return out.copy_(y[:, :, :H, :W] + bias[:, None, None])
    return interleave(y + bias.repeat(4)[:, None, None], out)


def empty_output(x: Tensor, bias: Tensor, doubled: bool) -> Tensor:
    """[B, N, H, W], twice as large if doubled, in channels-last memory, unset."""
    B, _, H, W = x.shape
    scale = 2 if doubled else 1
    shape = (B, len(bias), scale * H, scale * W)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
