"""How many images at once: requests cut into batches, and the memory that decoding takes."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from hqtvae_fast.arguments import positive
from hqtvae_fast.backend import unasked
from hqtvae_fast.config import BUCKETS, DEFAULT_BATCH, VAEConfig
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.plan import Plan, apart

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


def best_batch(plan: Plan, device: torch.device) -> int:
    """Images at once where nobody says how many: the fastest size that the plan knows, else the device's default."""
    return _default(device) if plan.best is None else plan.best


def cut(
    plan: Plan, device: torch.device, total: int, batch_size: int | None, *, buckets: bool, fixed: bool = False
) -> Cutter:
    """A cutter of ``total`` images into batches of ``batch_size``, by the plan's sizes; None: of the best one, or where
    they are ``fixed`` of the device's default, which no measurement changes. ValueError on one that is no size."""
    if batch_size is not None:
        limit = positive("batch_size", batch_size)
    else:
        limit = _default(device) if fixed else best_batch(plan, device)
    return Cutter(total, limit, fixed=fixed, buckets=buckets, sizes=plan.batches or BUCKETS)


def _default(device: torch.device) -> int:
    return DEFAULT_BATCH.get(device.type, DEFAULT_BATCH["cpu"])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it tells of a lack of memory, on either kind of device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _CPU_SIGNS)


# --------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class ActivationMemory:
    """Peak bytes of tensors alive at once, beside weights: ``fixed`` plus ``per_image`` for each image of a chunk.
    ``largest``: elements of an image's largest map."""

    fixed: int
    per_image: int
    largest: int = 1

    def total(self, images: int) -> int:
        return self.fixed + images * self.per_image

    def largest_chunk(self, budget: int) -> int:
        """The most images whose total is within ``budget`` bytes; 0 if not even one is."""
        return max(0, (budget - self.fixed) // self.per_image)

    @property
    def most_short(self) -> int:
        """The most images of which no map has 2^31 - 1 elements or more: there libraries cut a convolution in parts, or
        take 64-bit indices."""
        return (2**31 - 2) // max(1, self.largest)


@cache
def decoding_memory(config: VAEConfig, dtype: torch.dtype) -> ActivationMemory:
    """Of decoding codes to pixels in ``dtype``, folded as for inference. Half a second, once a process.

    What libraries take besides, for scratch in a convolution, is not in it.
    """
    # Tensors without values are on no device that a backend asked for by name, or by a plan, could run on.
    with unasked(), apart():
        return _decoding_memory(config, dtype)


def _decoding_memory(config: VAEConfig, dtype: torch.dtype) -> ActivationMemory:
    with without_values():
        vae = HQVAE(config).eval()
    with torch.device("meta"):
        vae.set_decoder_dtype(dtype).fold()

    def decode(count: int) -> Tensor:
        return vae.decode([torch.zeros(count, s, s, dtype=torch.int64, device="meta") for s in config.level_sides])

    one, two = (_living(partial(decode, count)) for count in (1, 2))
    return ActivationMemory(2 * one.peak - two.peak, two.peak - one.peak, two.largest - one.largest)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that tensors made by ``run`` hold at one time, its result among them."""
    return _living(run).peak


def _living(run: Callable[[], Any]) -> _Living:
    with torch.no_grad(), _Living() as living:
        result = run()
    del result
    return living


class _Living(TorchDispatchMode):
    """Adds up the storages that operators make, until they are freed; ``largest``: elements of the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        inputs = {tensor.untyped_storage()._cdata for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage(), inputs)
                self.largest = max(self.largest, tensor.numel())
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
