"""Batches: which pictures each one holds, and the loader that makes them in worker processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from hqtvae_fast.train.data.dataset import Draw, PictureDataset, Sample

_ORDER = 1  # first of the numbers that an epoch's order is made from; chances of a draw have 2 there


class PictureStream(Sampler[list[Draw]]):
    """Which pictures each batch holds: a stream without end that any run can be put at.

    The stream is one permutation of all pictures after another, the one of an epoch made from (seed, epoch). Global
    batch k is its pictures [k * batch_size, (k + 1) * batch_size), whatever the number of processes, so that a batch
    may lie over the seam of two epochs, or of many in a small set; process ``rank`` of ``world`` takes every
    ``world``-th of them from ``rank`` on. Iterating gives this rank's batches from the position set by :meth:`seek`, by
    default the beginning; the position does not move by itself.

    length: pictures in the set. batch_size: of the global batch, a multiple of ``world``.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank: expected one in [0, {world}); got {rank}")
        if batch_size < 1 or batch_size % world:
            raise ValueError(f"batch_size: expected a positive multiple of the {world} processes; got {batch_size}")
        if length < 1:
            raise ValueError(f"expected at least one picture; got {length}")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more; got {seed}")
        self.length, self.batch_size, self.seed, self.rank, self.world = length, batch_size, seed, rank, world
        self.seen = 0
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def batches_per_epoch(self) -> float:
        """Below 1 where a batch holds the set more than once."""
        return self.length / self.batch_size

    def epochs(self, seen: int) -> float:
        """How often the set has been gone through after ``seen`` pictures of the stream."""
        return seen / self.length

    def seek(self, seen: int) -> None:
        """Put the next iteration behind the first ``seen`` pictures of the stream, of whatever batches they were."""
        if seen < 0:
            raise ValueError(f"seen: expected 0 or more; got {seen}")
        self.seen = seen

    def __iter__(self) -> Iterator[list[Draw]]:
        # The position is read now, not when the first batch is asked for: a loader asks ahead.
        return map(self._batch, count(self.seen, self.batch_size))

    def _batch(self, first: int) -> list[Draw]:
        """This rank's share of the global batch that begins at picture ``first`` of the stream."""
        places = np.arange(first + self.rank, first + self.batch_size, self.world)
        epochs, rows = np.divmod(places, self.length)
        return [
            Draw(epoch, picture)
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
            for picture in self._epoch_order(epoch)[rows[epochs == epoch]].tolist()
        ]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation, int64 [length]; the last one asked for is kept."""
        if self._order is None or self._order[0] != epoch:
            # RandomState, since NumPy promises its streams for ever: a run may go on under another version.
            bits = np.random.MT19937(np.random.SeedSequence((_ORDER, self.seed, epoch)))
            self._order = (epoch, np.random.RandomState(bits).permutation(self.length))
        return self._order[1]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch.

    ``images``: float32 [B, 3, R, R] in [-1, 1], or what is stored of the pictures (:class:`Stored`). ``keys``: names of
    the B pictures. ``labels``: int64 [B], or None. ``captions``: B strings, or None. ``broken``: keys of the pictures
    that could not be read and were replaced.
    """

    images: Tensor
    keys: tuple[str, ...]
    labels: Tensor | None
    captions: tuple[str, ...] | None
    broken: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> Batch:
        labels = None if self.labels is None else self.labels.pin_memory()
        return dataclasses.replace(self, images=self.images.pin_memory(), labels=labels)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """With its tensors on ``device``."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=non_blocking)
        return dataclasses.replace(self, images=self.images.to(device, non_blocking=non_blocking), labels=labels)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples, all of one kind of condition, as a batch."""
    labels = [sample.label for sample in samples if sample.label is not None]
    captions = tuple(sample.caption for sample in samples if sample.caption is not None)
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        keys=tuple(sample.key for sample in samples),
        labels=torch.tensor(labels, dtype=torch.int64, device="cpu") if labels else None,
        captions=captions or None,
        broken=tuple(key for sample in samples for key in sample.broken),
    )


@dataclass
class BrokenCount:
    """How many pictures were skipped as broken, and the first few of them: ``add`` each batch's ``broken``."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    shown: int = 5

    def add(self, keys: Sequence[str]) -> None:
        """A picture counts each time that it is met, so once an epoch or more; it is named once."""
        self.count += len(keys)
        new = [key for key in dict.fromkeys(keys) if key not in self.first]
        self.first += new[: self.shown - len(self.first)]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.count} broken skipped: {', '.join(self.first)}{more}" if self.count else "none broken"


def make_loader(
    dataset: PictureDataset,
    stream: PictureStream,
    *,
    workers: int = 0,
    device: torch.device | str = "cpu",
    prefetch: int = 2,
) -> DataLoader[Any]:
    """A loader of :class:`Batch` in the stream's order: each iteration goes on without end from the stream's position.

    workers: processes that read and crop; 0 does it in this one. They live as long as the loader, and have no say in
        what comes out. device: for a CUDA device batches come in pinned memory. prefetch: batches ahead, a worker.
    """
    if stream.length != len(dataset):
        raise ValueError(f"stream: expected one over the {len(dataset)} pictures of the dataset; got {stream.length}")
    return DataLoader(
        dataset,
        batch_sampler=stream,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.device(device).type == "cuda",
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers > 0 else None,
        worker_init_fn=leave_interrupts,
        generator=torch.Generator(),  # else every iteration would take a number from torch's global stream
    )


def leave_interrupts(worker: int) -> None:
    """For the start of a loader's process: SIGINT and SIGTERM, which a terminal or a batch system sends to all
    processes of a run, are for the one that trains to answer. It ends its workers with SIGTERM, as they know by its
    sender."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # else, on macOS, they end with any
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
