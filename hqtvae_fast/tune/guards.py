"""Memory that tells what was done to it: allocations full of NaN between two zones that nobody may write to.

What an operation takes by torch's own functions (``torch.empty``, ``x.new_empty``, ...) comes from here meanwhile. What
a library takes inside, in C++, is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

ZONE = 4096
"""Bytes on either side: a multiple of every alignment that kernels ask for."""
FILLS = (0xFF, 0x7E)
"""Bytes of memory that was not written: NaN in every floating dtype but the second in fp32 and bf16, where it is 1e38.
What reads it gives other bits under the other."""


class Guards:
    """All memory handed out, each a tensor of its own storage."""

    def __init__(self, fill: int) -> None:
        self.fill = fill
        self._handed: list[tuple[Tensor, int]] = []

    def empty(self, like: Tensor, device: torch.device) -> Tensor:
        """With the shape, strides and dtype of ``like``, which may be on the meta device."""
        count = like.untyped_storage().nbytes() if like.is_meta else _span(like)
        size = -(-count // 16) * 16
        with torch.inference_mode(False):
            memory = torch.full((size + 2 * ZONE,), self.fill, dtype=torch.uint8, device=device)
        self._handed.append((memory, count))
        return memory.view(like.dtype).as_strided(like.shape, like.stride(), ZONE // like.element_size())

    def copies(self, inputs: Any) -> Any:
        """Of all tensors in it, laid out alike."""
        return tree_map(lambda x: self.empty(x, x.device).copy_(x) if isinstance(x, Tensor) else x, inputs)

    def written(self) -> str | None:
        """Where somebody wrote beyond what was handed out, or None."""
        for memory, count in self._handed:
            for where, zone in (("before", memory[:ZONE]), ("behind", memory[ZONE + count :])):
                changed = int((zone != self.fill).sum())
                if changed:
                    return f"wrote {changed} bytes {where} an allocation of {count}"
        return None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Allocations in here are of this memory."""
        with ExitStack() as stack:
            for owner, name in _FUNCTIONS:
                stack.enter_context(mock.patch.object(owner, name, self._in_place_of(getattr(owner, name))))
            yield

    def _in_place_of(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            if any(kwargs.get(name) is not None for name in ("out", "pin_memory", "requires_grad")):
                return function(*args, **kwargs)
            first = args[0] if args and isinstance(args[0], Tensor) else None
            device = kwargs.get("device") or (torch.get_default_device() if first is None else first.device)
            if torch.device(device).type == "meta":
                return function(*args, **kwargs)
            return self.empty(function(*args, **{**kwargs, "device": "meta"}), torch.device(device))

        return allocate


_FUNCTIONS: tuple[tuple[Any, str], ...] = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (Tensor, "new_empty"),
    (Tensor, "new_empty_strided"),
)


def _span(tensor: Tensor) -> int:
    """Bytes from the first value to the end of the last."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def same_bits(left: Any, right: Any) -> bool:
    """Whether two results are the same tensors, byte for byte."""
    pairs = list(zip(tree_leaves(left), tree_leaves(right), strict=True))
    return all(_bytes_equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def _bytes_equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)))
