"""Seconds of a call as a step makes it: its weights cold, its activations warm; captured on a GPU."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hqtvae_fast.ops.spec import Case, Spec
from hqtvae_fast.tune.proof import synchronize

TURN_SECONDS = 2e-3
"""A turn has as many calls as take so long."""
MOST_COPIES, MOST_CALLS = 256, 512
OTHERWISE = 32 * 2**20  # bytes, of a cache that the machine says nothing of
WARM_UPS = 3


def cache_bytes(device: torch.device) -> int:
    """Of the last cache before main memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [_kib(file) for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=0) or OTHERWISE


def _kib(file: Path) -> int:
    try:
        text = file.read_text(encoding="ascii").strip()
        return int(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]]
    except (OSError, ValueError, KeyError, IndexError):
        return 0


@dataclass
class Calls:
    """A variant's calls on inputs in turn: the first tensor, which the operation before has just written, is the same
    each time; the others are as many copies as fill twice the last cache."""

    spec: Spec
    variant: str
    inputs: list[tuple[Any, ...]]
    device: torch.device
    count: int = 0
    """Calls in a turn."""
    graph: Any = None
    at: int = field(default=0)

    def call(self) -> Any:
        self.at = (self.at + 1) % len(self.inputs)
        return self.spec.run(*self.inputs[self.at], backend=self.variant)


def rotated(spec: Spec, case: Case, device: torch.device, cache: int) -> list[tuple[Any, ...]]:
    """Inputs of one case with weights in as many places as fill twice ``cache`` bytes."""
    made = spec.make_inputs(case, device, 0)
    tensors = [x for x in tree_leaves(made) if isinstance(x, Tensor)]
    warm, size = (tensors[0] if tensors else None), sum(x.nbytes for x in tensors[1:])
    copies = 1 if size == 0 else min(MOST_COPIES, math.ceil(2 * cache / size) + 1)

    def another(x: Any) -> Any:
        return x.clone() if isinstance(x, Tensor) and x is not warm else x

    return [made, *(tree_map(another, made) for _ in range(copies - 1))]


def prepare(calls: Calls) -> None:
    """Count how many calls a turn has; on a GPU capture them."""
    for _ in range(WARM_UPS):
        calls.call()
    synchronize(calls.device)
    start = time.perf_counter()
    calls.call()
    synchronize(calls.device)
    once = max(time.perf_counter() - start, 1e-6)
    calls.count = min(MOST_CALLS, max(1, math.ceil(TURN_SECONDS / once)))
    if calls.device.type == "cuda":
        calls.count = min(MOST_CALLS, max(calls.count, min(len(calls.inputs), 16)))
        stream = torch.cuda.Stream(calls.device)
        stream.wait_stream(torch.cuda.current_stream(calls.device))
        with torch.cuda.stream(stream):
            for _ in calls.inputs:  # what an op makes of each one's weights is no part of a call
                calls.call()
        torch.cuda.current_stream(calls.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls.count):
                calls.call()
        calls.graph = graph


def seconds(calls: Calls) -> float:
    """Of one call, as the mean over a turn."""
    if calls.graph is None:
        start = time.perf_counter()
        for _ in range(calls.count):
            calls.call()
        return (time.perf_counter() - start) / calls.count
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    calls.graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / calls.count
