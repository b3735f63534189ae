"""What a piece of work does, counted while it runs: dispatched operations, bytes that they touch, FLOPs, memory."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Counts:
    """``operations``: dispatched ones that are no mere views; on a GPU each is at least one launch, and a custom op
    counts as one. ``bytes``: of their inputs and outputs, each operation's by itself. ``flops``: of matrix products,
    convolutions and attention in torch's own operations; what happens inside a custom op is not seen."""

    operations: int
    bytes: int
    flops: int


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket not in flop_registry:
            # In inference, composite operations (linear, conv2d) arrive whole: what they are made of is counted.
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            self.bytes += sum(leaf.nbytes for leaf in _tensors(args, kwargs, result))
        # torch's own formulas, without its FlopCounterMode: that one follows gradients, of which inference has none.
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _tensors(*values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def count(run: Callable[[], Any]) -> Counts:
    """Counts of one run, after one that is not counted: packing and caching belong to the first."""
    run()
    with _Counter() as counter:
        run()
    return Counts(counter.operations, counter.bytes, counter.flops)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that torch's CPU allocator held during one run beyond what it held before, after one that is not
    counted. Temporary memory of libraries (oneDNN's scratch space) is not torch's, and not seen."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    if not changes:
        raise RuntimeError("the profiler has seen no allocation: expected at least one")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def graph_breaks(run: Callable[..., Any], *inputs: Any) -> int:
    """Places where torch.compile would leave its graph, by torch._dynamo."""
    torch._dynamo.reset()
    torch._logging.set_logs(dynamo=logging.ERROR)  # it would explain each break at length
    return torch._dynamo.explain(run)(*inputs).graph_break_count
