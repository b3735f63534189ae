"""How many images at once: requests cut into batches, the sizes worth having, and the memory that decoding takes.

A batch size is worth having if it is the one with the most images a second, or a smaller one that saves time over the
next larger that is kept: a request's last images are computed as the smallest kept size that holds them, and each size
costs the memory of its captures. Sizes above the fastest one are not kept.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from hqtvae_fast.config import BUCKETS, VAEConfig
from hqtvae_fast.files import read_text, write_file
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.empty import without_values

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


# --------------------------------------------------------------------------------------------------- sizes worth having

WORTH = 0.95
"""A size is kept if it takes at most this share of the next larger one's time."""
SECONDS, MOST_RUNS = 1.0, 20  # for each size, after one run that captures and warms up
PAST_BEST = 0.8  # sizes whose images a second fall below this share of the best end the search

Facts = Mapping[str, Any]
"""What the times hold for: the device, the model, what it computes in."""


@dataclass(frozen=True)
class BatchTuning:
    """Seconds of drawing and decoding a batch, by its size."""

    seconds: Mapping[int, float]

    @property
    def best(self) -> int:
        """The size with the most images a second; of equal ones the smallest."""
        return max(sorted(self.seconds), key=lambda size: size / self.seconds[size])

    @property
    def buckets(self) -> tuple[int, ...]:
        """The sizes to compute with, ascending; the last one is :attr:`best`."""
        kept = [self.best]
        for size in sorted((size for size in self.seconds if size < self.best), reverse=True):
            if self.seconds[size] <= WORTH * self.seconds[kept[-1]]:
                kept.append(size)
        return tuple(reversed(kept))


def measure(
    run: Callable[[int], None],
    sizes: Sequence[int],
    *,
    batches: int = 1,
    on_size: Callable[[int, float], None] | None = None,
) -> BatchTuning:
    """Times ``run`` (which draws and decodes ``batches`` batches of that size, and waits for them) at ascending
    ``sizes``.

    Ends at the first that does not fit into memory, or that is well past the best. ``on_size`` is told of each size
    and its seconds. Raises MemoryError if the smallest does not fit.
    """
    seconds: dict[int, float] = {}
    for size in sorted(set(sizes)):
        try:
            run(size)
            seconds[size] = _median_seconds(run, size) / batches
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if not seconds:
                raise MemoryError(f"not enough memory for {size} image{'s' if size > 1 else ''} at once") from error
            break
        if on_size is not None:
            on_size(size, seconds[size])
        tuning = BatchTuning(seconds)
        if size / seconds[size] < PAST_BEST * tuning.best / seconds[tuning.best]:
            break
    return BatchTuning(seconds)


def _median_seconds(run: Callable[[int], None], size: int) -> float:
    taken: list[float] = []
    while not taken or (sum(taken) < SECONDS and len(taken) < MOST_RUNS):
        start = time.perf_counter()
        run(size)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


# ------------------------------------------------------------------------------------------------------------- the file


def default_file() -> Path:
    """``batches.json`` in the folder that HQTVAE_CACHE names, else in hqtvae_fast/ of the user's cache folder."""
    own = os.environ.get("HQTVAE_CACHE")
    if own:
        return Path(own) / "batches.json"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hqtvae_fast" / "batches.json"


def load(facts: Facts, file: Path) -> BatchTuning | None:
    """What was measured under the same facts, or None. ValueError on a file that is none of ours."""
    for entry in _read(file):
        if entry["facts"] == dict(facts):
            return BatchTuning({int(size): float(seconds) for size, seconds in entry["seconds"].items()})
    return None


def save(tuning: BatchTuning, facts: Facts, file: Path) -> None:
    """Keep the times, in place of older ones under the same facts. What else the file holds stays."""
    entries = [entry for entry in _read(file) if entry["facts"] != dict(facts)]
    entries.append({"facts": dict(facts), "seconds": {str(size): tuning.seconds[size] for size in tuning.seconds}})
    write_file(file, (json.dumps(entries, indent=1) + "\n").encode())


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(read_text(file))
        if not all(entry["seconds"] and entry["facts"] and min(entry["seconds"].values()) > 0 for entry in entries):
            raise ValueError("an entry without facts or times")
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: expected the times of batch sizes that `hqtvae tune` writes; got {error}") from None
    return list(entries)


# --------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class ActivationMemory:
    """Peak bytes of tensors alive at once, beside weights: ``fixed`` plus ``per_image`` for each image of a chunk."""

    fixed: int
    per_image: int

    def total(self, images: int) -> int:
        return self.fixed + images * self.per_image

    def largest_chunk(self, budget: int) -> int:
        """The most images whose total is within ``budget`` bytes; 0 if not even one is."""
        return max(0, (budget - self.fixed) // self.per_image)


@cache
def decoding_memory(config: VAEConfig, dtype: torch.dtype) -> ActivationMemory:
    """Of decoding codes to pixels in ``dtype``, folded as for inference. Half a second, once a process.

    What libraries take besides, for scratch in a convolution, is not in it.
    """
    with without_values():
        vae = HQVAE(config).eval()
    with torch.device("meta"):
        vae.set_decoder_dtype(dtype).fold()

    def decode(count: int) -> Tensor:
        return vae.decode([torch.zeros(count, s, s, dtype=torch.int64, device="meta") for s in config.level_sides])

    one, two = (peak_bytes(partial(decode, count)) for count in (1, 2))
    return ActivationMemory(fixed=2 * one - two, per_image=two - one)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that tensors made by ``run`` hold at one time, its result among them."""
    with torch.no_grad(), _Living() as living:
        result = run()
    del result
    return living.peak


class _Living(TorchDispatchMode):
    """Adds up the storages that operators make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        inputs = {tensor.untyped_storage()._cdata for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage(), inputs)
        self.peak = max(self.peak, self.now)
        return result

    def _meet(self, storage: torch.UntypedStorage, inputs: set[int]) -> None:
        key = storage._cdata
        if key in self._known or key in inputs:  # a view, or weights
            return
        self._known.add(key)
        self.now += storage.nbytes()
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
