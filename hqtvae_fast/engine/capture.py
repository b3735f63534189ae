"""Work over static buffers, captured once as a CUDA graph and replayed: what drawing, decoding and encoding share.

A capture keeps its activations in a memory pool of its own for as long as it lives. Three runs come before it, on the
stream that is then captured: in the first, libraries choose their algorithms, and Triton compiles. No setting
of the allocator is needed or changed; where captures of many sizes leave too little in one piece, torch's own
``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`` is for that, and the cap on all captures together is
:class:`hqtvae_fast.engine.graph_cache.GraphCache`'s.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WARM_UPS = 3
Work = Callable[[], object]


class CaptureError(RuntimeError):
    """Something in the work cannot be captured; the message names the operator."""


class Replay:
    """``work``, which reads and writes static buffers alone: a graph on a GPU, a plain call elsewhere.

    Who owns the buffers owns the replay, and gives it the work at each call: were it kept here, the two would hold each
    other, and with them a capture's memory after it was given up, until Python looks for cycles.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self.bytes = 0
        """Of memory that the capture holds."""
        self._device = device
        self._last: torch.cuda.Event | None = None
        self._lock = threading.Lock()
        self._graph = None if device.type != "cuda" else self._capture(work)

    def __call__(self, work: Work) -> None:
        if self._graph is None:
            work()
        else:
            self._graph.replay()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One use, from its first input's copy to its last result's. The buffers are its own meanwhile: another thread
        waits for it, and on the device a use on another stream does. (Two streams of pictures that a user reads in turn
        have the same buffers.)"""
        with self._lock:
            if self._graph is None:
                yield
                return
            stream = torch.cuda.current_stream(self._device)
            if self._last is not None:
                stream.wait_event(self._last)
            try:
                yield
            finally:
                self._last = stream.record_event()

    def _capture(self, work: Work) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        # This sets the device too, and sets both back where a capture fails to end, which torch.cuda.graph does not.
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                work()
            torch.cuda.synchronize(self._device)
            gc.collect()  # for what dead cycles hold
            _forget_workspaces()
            torch.cuda.empty_cache()  # as the capture will: what it frees then must not be subtracted from its own
            before = torch.cuda.memory_reserved(self._device)
            try:
                graph = _captured(work, stream)
            finally:
                _forget_workspaces()
            self.bytes = max(0, torch.cuda.memory_reserved(self._device) - before)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return graph


def _captured(work: Work, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    graph, pool, watch = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), _LastOperator()
    try:
        # Other threads (a loader's, say) may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"), watch:
            work()
    except RuntimeError as error:
        _close_pool(pool)
        # An operator's error makes the capture's end fail as well; the first of the two says more.
        first = watch.error or str(error)
        if watch.out_of_memory:
            raise torch.OutOfMemoryError(first) from error
        raise CaptureError(f"cannot be captured in a CUDA graph: {watch.name} ({first.splitlines()[0]})") from error
    return graph


def _forget_workspaces() -> None:
    """cuBLAS has a workspace for each stream, which torch keeps. One that is there when a capture begins is written
    into its graph: then graphs captured on one stream share it, though they may run side by side, and it may be given
    up while a graph still uses it. With none there, it comes from the capture's own pool, and stays the capture's own
    if it is forgotten afterwards."""
    # Torch's private name, from 1.13 on: a torch without it is taken for one that needs no help.
    forget = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if forget is not None:
        forget()


def _close_pool(pool: Any) -> None:
    """Torch leaves a pool open whose capture could not be ended: its allocator would go on asking a graph that is gone
    which allocations are its own. Where the end was reached the graph closes it, and torch refuses to do so here."""
    device = torch.cuda.current_device()
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


class _LastOperator(TorchDispatchMode):
    """Remembers what was called last, and what it raised."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "nothing yet"
        self.error = ""
        self.out_of_memory = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.name = str(function)
        return function(*args, **(kwargs or {}))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        # Words, not the error itself, which holds what its frames hold.
        self.error = "" if error is None else str(error).strip() or type(error).__name__
        self.out_of_memory = isinstance(error, torch.OutOfMemoryError)
        super().__exit__(kind, error, trace)
