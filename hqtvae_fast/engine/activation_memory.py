"""How much memory decoding takes: the decoder is run without data, and what is alive at each moment is added up."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from hqtvae_fast.config import VAEConfig
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.empty import without_values


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
