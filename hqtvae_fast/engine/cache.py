"""Preallocated keys and values: written in place, never concatenated."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of a stack of attention layers for up to ``capacity`` positions.

    Layout [layers, B, H, capacity, E]: a layer's share is one contiguous block, and a head's positions are
    neighbours, which is the order in which a query reads them.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layers, batch, heads, capacity, width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def layer(self, index: int) -> LayerKV:
        return LayerKV(self, index)  # not kept: the two would hold each other, and the memory with them

    def advance(self, positions: int) -> None:
        """Called once a pass, after all layers have appended."""
        self.length += positions

    def reset(self) -> None:
        """Forget all positions; the memory is written over by the next pass."""
        self.length = 0


class LayerKV:
    """One layer's share of a :class:`KVCache`."""

    def __init__(self, cache: KVCache, index: int) -> None:
        self.cache, self.keys, self.values = cache, cache.keys[index], cache.values[index]

    @property
    def length(self) -> int:
        """Positions held; the same in all layers, and moved on by :meth:`KVCache.advance` alone."""
        return self.cache.length

    def append(self, k_BHTE: Tensor, v_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Write T positions after those held; return keys and values of all of them, [B, H, length + T, E]."""
        end = self.length + k_BHTE.shape[2]
        self.keys[:, :, self.length : end].copy_(k_BHTE)
        self.values[:, :, self.length : end].copy_(v_BHTE)
        return self.keys[:, :, :end], self.values[:, :, :end]
