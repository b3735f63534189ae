"""Centre squares of a source's pictures, in order: what is encoded once and kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hqtvae_fast.train.data.dataset import PictureDataset, UnreadableError
from hqtvae_fast.train.data.loader import leave_interrupts
from hqtvae_fast.train.data.sources import Source


class CentreSquares(Dataset[tuple[Tensor, bool]]):
    """float32 [3, R, R] in [-1, 1] of each picture, and whether it is broken: zeros are in its place then.

    ``first`` and ``last``: the part of the source, its end left out; by default all of it.
    """

    def __init__(self, source: Source, resolution: int, first: int = 0, last: int | None = None) -> None:
        self.pictures, self.resolution = PictureDataset(source, resolution, training=False), resolution
        self.indices = range(first, len(source) if last is None else last)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, bool]:
        try:
            return self.pictures.pixels(self.indices[place]), False
        except UnreadableError:
            return torch.zeros(3, self.resolution, self.resolution, dtype=torch.float32, device="cpu"), True

    def batches(self, size: int, *, workers: int = 0, pinned: bool = False) -> DataLoader[Any]:
        """Images [B, 3, R, R] and broken, bool [B], read ahead by ``workers`` processes (0: by this one, not ahead)."""
        return DataLoader(
            self,
            batch_size=size,
            num_workers=workers,
            worker_init_fn=leave_interrupts,
            pin_memory=pinned,
            generator=torch.Generator(),  # else this would take a number from torch's global stream
        )
