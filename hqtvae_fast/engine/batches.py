"""How many images at once: requests are cut into batches, and into smaller ones where memory does not suffice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hqtvae_fast.config import BUCKETS

_CPU_SIGNS = ("can't allocate memory", "not enough memory")  # of torch's CPU allocator, which raises RuntimeError


@dataclass(frozen=True)
class Batch:
    """Images ``start`` to ``start + count`` of a request, computed as ``size`` rows: the rest is padding."""

    start: int
    count: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.count


class Cutter:
    """Cuts a request of ``total`` images into batches of at most ``limit``, from the front.

    ``buckets``: a batch is computed with as many rows as the smallest of ``sizes`` that holds it, so that few sizes are
    captured for many requests. ``fixed``: every batch is computed with ``limit`` rows, however few images are left,
    so that its matrix products have the same shapes, and an image the same bits, in every request.
    """

    def __init__(
        self, total: int, limit: int, *, buckets: bool = False, fixed: bool = False, sizes: Sequence[int] = BUCKETS
    ) -> None:
        self.total, self.limit, self.buckets, self.fixed, self.sizes = total, limit, buckets, fixed, tuple(sizes)

    def next(self, start: int) -> Batch:
        """The batch that begins with image ``start``."""
        count = min(self.limit, self.total - start)
        sizes = [size for size in self.sizes if count <= size <= self.limit] if self.buckets else [count]
        return Batch(start, count, self.limit if self.fixed or not sizes else sizes[0])

    def shrink(self, failed: Batch) -> bool:
        """Smaller batches from now on, after one ran out of memory; whether that is possible. Says so, in a warning."""
        smaller = [size for size in self.sizes if size < failed.size]
        if not smaller or self.fixed:  # another size would give other bits
            return False
        self.limit = smaller[-1]
        warnings.warn(f"not enough memory for {failed.size} images at once: going on with {self.limit}", stacklevel=2)
        return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it tells of a lack of memory, on either kind of device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _CPU_SIGNS)
