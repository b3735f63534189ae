"""Weights at the points of a short convolution, laid out for the kernel; and how maps are cut into tiles."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

NODES = (0.0, 0.625, -0.625, 1.5, -1.5)
"""Where polynomials are evaluated, beside infinity. Chosen for accuracy: 0, +-1, +-2 have four times the error."""
TILE = len(NODES) + 1  # input pixels along an axis
POINTS = TILE * TILE
PANEL = 16


def tile_side(doubled: bool, size: int) -> tuple[int, int]:
    """Outputs of a tile along an axis, and the tiles of an axis of ``size`` input pixels.

    A tile of 6 pixels has 4 outputs of a convolution of 3, or 5 of one of 2; the four phases of a folded upsampling are
    pieces of one map with a pixel more.
    """
    side = TILE + 1 - (2 if doubled else 3)
    return side, -(-(size + doubled) // side)


@cache
def matrices(taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """(input [6, 6], weights [6, taps], outputs [7 - taps, 6]) in fp64, with
    y = outputs @ ((weights @ g) * (input @ d)): the convolution of 6 values d with ``taps`` weights g (Toom-Cook)."""
    nodes = torch.tensor(NODES, dtype=torch.float64, device="cpu")
    side = TILE + 1 - taps
    into = torch.zeros(TILE, TILE, dtype=torch.float64, device="cpu")
    weights = torch.zeros(TILE, taps, dtype=torch.float64, device="cpu")
    outputs = torch.zeros(side, TILE, dtype=torch.float64, device="cpu")
    for i, node in enumerate(NODES):
        others = [other for j, other in enumerate(NODES) if j != i]
        into[i, : TILE - 1] = _product(others)
        scale = torch.prod(node - torch.tensor(others, dtype=torch.float64, device="cpu"))
        weights[i] = nodes[i] ** torch.arange(taps, dtype=torch.int64, device="cpu") / scale
        outputs[:, i] = nodes[i] ** torch.arange(side, dtype=torch.int64, device="cpu")
    into[-1], weights[-1, -1], outputs[-1, -1] = _product(NODES), 1, 1
    return into, weights, outputs


def _product(roots: tuple[float, ...] | list[float]) -> Tensor:
    """Coefficients of the product of (x - root), the constant first."""
    coefficients = torch.ones(1, dtype=torch.float64, device="cpu")
    for root in roots:
        shifted = torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), coefficients])
        coefficients = shifted - root * torch.cat([coefficients, torch.zeros(1, dtype=torch.float64, device="cpu")])
    return coefficients


@torch.no_grad()
def transform_weights(weight: Tensor) -> Tensor:
    """[N, C, 3, 3], or folded [4 * N, C, 2, 2], to [36, N / 16, C, 16] in its dtype; worked out in fp64."""
    N, C, taps, _ = weight.shape
    matrix = matrices(taps)[1].to(weight.device)
    parts = []
    for part in weight.split(PANEL):
        points_PCN = torch.einsum("pi,nkij,qj->pqkn", matrix, part.double(), matrix).flatten(0, 1)
        parts.append(points_PCN.to(weight.dtype))
    return torch.stack(parts, dim=1).view(POINTS, N // PANEL, C, PANEL)
