"""Fixed work in plain torch, of about the same mix as a tiny model's: what ours is divided by on a shared machine.

It imports nothing of the package and must not change: a stored quotient is only comparable with one over the same work.
A change makes a new baseline, with a new NAME.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "baseline 1"
BATCH, WIDTH, HEADS, STEPS, LAYERS, CODES = 2, 64, 4, 16, 4, 64


class Baseline:
    """``draw``: steps of small transformer layers with keys and values kept, and a draw after each. ``decode``: 3x3
    convolutions with group norms over 32x32 pixels."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random) / shape[-1] ** 0.5

        self._layers = [tuple(weight(rows, columns) for rows, columns in _SHAPES) for _ in range(LAYERS)]
        self._head, self._table = weight(CODES, WIDTH), weight(CODES, WIDTH)
        self._convolutions = [weight(32, 32, 3, 3) for _ in range(8)]
        self._image = torch.randn(BATCH, 32, 32, 32, generator=random)
        self._random = random

    @torch.inference_mode()
    def draw(self) -> Tensor:
        caches: list[list[Tensor]] = [[] for _ in self._layers]
        x = torch.zeros(BATCH, WIDTH)
        for _ in range(STEPS):
            for layer, cache in zip(self._layers, caches, strict=True):
                x = _layer(x, layer, cache)
            codes = torch.multinomial(F.softmax(x @ self._head.T, -1), 1, generator=self._random)
            x = self._table[codes[:, 0]]
        return x

    @torch.inference_mode()
    def decode(self) -> Tensor:
        x = self._image
        for weights in self._convolutions:
            x = x + F.conv2d(F.silu(F.group_norm(x, 8)), weights, padding=1)
        return x


_SHAPES = ((3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))


def _layer(x: Tensor, weights: tuple[Tensor, ...], cache: list[Tensor]) -> Tensor:
    qkv, out, up, down = weights
    q, k, v = (F.layer_norm(x, (WIDTH,)) @ qkv.T).view(BATCH, 3, HEADS, 1, WIDTH // HEADS).unbind(1)
    cache.append(torch.stack((k, v)))
    keys, values = torch.cat(cache, dim=3).unbind(0)
    x = x + F.scaled_dot_product_attention(q, keys, values).reshape(BATCH, WIDTH) @ out.T
    return x + F.gelu(F.layer_norm(x, (WIDTH,)) @ up.T) @ down.T
