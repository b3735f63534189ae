"""Captures by what they are for, the least recently used given up where their memory would pass a cap."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

GPU_SHARE = 0.5  # of the device's memory, for all captures together


@dataclass(frozen=True)
class CaptureReport:
    """One capture that is kept: what it is for, the bytes that it holds, and how often it was used."""

    key: Hashable
    bytes: int
    uses: int

    def __str__(self) -> str:
        return f"{self.key}: {self.bytes / 2**20:,.0f} MiB, used {self.uses} times"


class GraphCache:
    """Keeps what ``make`` captures, up to ``limit`` bytes; None: half of the device's memory."""

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        if limit is None and device.type == "cuda":
            limit = int(torch.cuda.get_device_properties(device).total_memory * GPU_SHARE)
        self.device, self.limit = device, limit
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._uses: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[GraphCache], tuple[torch.device, int | None]]:
        return GraphCache, (self.device, self.limit)  # copies and pickles begin without captures

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The capture for ``key``, made by ``make`` if there is none. It has an attribute ``bytes``.

        A capture larger than the cap alone is kept all the same, as the only one. Where memory does not suffice for it,
        all others are given up first.
        """
        with self._lock:  # CUDA captures one graph at a time
            if key not in self._kept:
                self._kept[key] = self._made(make)
                self._uses[key] = 0
            self._kept.move_to_end(key)
            self._uses[key] += 1
            while self.limit is not None and self.bytes > self.limit and len(self._kept) > 1:
                given_up, _ = self._kept.popitem(last=False)
                del self._uses[given_up]
            return self._kept[key]

    def _made(self, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except torch.OutOfMemoryError:
            if not self._kept:
                raise
        self.clear()
        return make()

    @property
    def bytes(self) -> int:
        return sum(kept.bytes for kept in self._kept.values())

    def clear(self) -> None:
        """Give up all captures: memory is short, or nothing more is to be captured. Waits for a GPU first: what still
        runs on another stream reads their buffers."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._kept.clear()
        self._uses.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def report(self) -> list[CaptureReport]:
        """What is kept, the most recently used last."""
        return [CaptureReport(key, kept.bytes, self._uses[key]) for key, kept in self._kept.items()]
