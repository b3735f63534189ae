"""Work over static buffers, captured once as a CUDA graph and replayed; a batch's drawing; and the captures kept.

The loop of :mod:`hqtvae_fast.engine.loop` is what is captured, all steps of it with the draws inside. Whatever a
request may change without changing a shape (conditions, seeds, temperature, top-k, top-p, given top codes) lies in a
buffer that a replay reads. Drawing and decoding are two graphs, so that they can run on two streams.

A capture keeps its activations in a memory pool of its own for as long as it lives. Three runs come before it, on the
stream that is then captured: in the first, libraries choose their algorithms, and Triton compiles. No setting
of the allocator is needed or changed; where captures of many sizes leave too little in one piece, torch's own
``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`` is for that, and the cap on all captures together is
:class:`GraphCache`'s.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hqtvae_fast.engine.cache import StepTables
from hqtvae_fast.engine.fused_step import Engine
from hqtvae_fast.engine.loop import Drawing, SamplingParams
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.engine.steering import Guidance, Known, check_guided
from hqtvae_fast.engine.streams import HIGH
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.modes import inference

WARM_UPS = 3
_capturing = threading.RLock()
"""Of the process, for all of its models and threads: torch's allocator knows one capture at a time."""
Work = Callable[[], object]


class CaptureError(RuntimeError):
    """Something in the work cannot be captured; the message names the operator."""


class Replay:
    """``work``, which reads and writes static buffers alone: a graph on a GPU, a plain call elsewhere.

    Who owns the buffers owns the replay, and gives it the work at each call: were it kept here, the two would hold each
    other, and with them a capture's memory after it was given up, until Python looks for cycles.
    """

    def __init__(self, work: Work, device: torch.device, priority: int = 0, *, buffers: Sequence[object] = ()) -> None:
        """``priority``: of the stream that is captured, which its kernels keep in the graph. ``buffers``: what the work
        reads and writes, kept until the device is done with the last use: given up by its owner, in one thread, while
        the device still replays what another one asked for, it would be written over."""
        self.bytes = 0
        """Of memory that the capture holds."""
        self._device, self._priority, self._buffers = device, priority, buffers
        self._last: torch.cuda.Event | None = None
        self._lock = threading.Lock()
        self._graph = None
        if device.type == "cuda":
            with _capturing:
                self._graph = self._capture(work)

    def __del__(self) -> None:
        last = getattr(self, "_last", None)
        if last is not None:
            with contextlib.suppress(RuntimeError):  # of a device that has failed
                last.synchronize()

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
        stream = torch.cuda.Stream(self._device, priority=self._priority)
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
        first = str(error) if watch.error == "" else watch.error
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


# -------------------------------------------------------------------------------------------------------------- drawing


class DrawReplay:
    """:func:`hqtvae_fast.engine.draw_codes` for one batch size; ``given``: whether top codes are given; ``guided``:
    whether each image has a row whose condition is withheld, at whatever scales the device then holds; ``completing``:
    whether codes are kept, wherever a mask on the device then says. With a fused draw among the options there can be no
    top-k and no top-p, neither now nor later."""

    def __init__(
        self,
        model: HQTransformer,
        batch: int,
        *,
        given: bool = False,
        guided: bool = False,
        completing: bool = False,
        engine: Engine | None = None,
        options: EngineOptions | None = None,
        tables: StepTables | None = None,
    ) -> None:
        config, device = model.config, model.norm.weight.device
        self.config, self.batch, self.guided, self.completing = config, batch, guided, completing
        self.fused_draw = options is not None and options.fused_draw
        seeds, condition = torch.zeros(batch, dtype=torch.int64, device=device), self._condition_buffer(device)
        levels = config.num_levels
        everything = SamplingParams((1.0,) * levels, (None,) * levels, (None,) * levels)
        side = config.side
        top = torch.zeros(batch, side, side, dtype=torch.int64, device=device) if given else None
        with inference():
            how: dict[str, Any] = {"given": top, "engine": engine, "options": options, "tables": tables}
            if guided and condition is not None:
                how["guidance"] = Guidance.off(condition)
            if completing:
                how["known"] = Known.none(config, batch, device)
            self.drawing = Drawing.make(model, condition, seeds, everything, **how)
            first = options is not None and options.overlap == "priority"
            self.replay = Replay(self._work, device, HIGH if first else 0, buffers=(self.drawing,))

    @property
    def bytes(self) -> int:
        """Of memory that the capture holds, its keys and values among it."""
        return self.replay.bytes + sum(cache.bytes for cache in self.drawing.step.caches)

    def _condition_buffer(self, device: torch.device) -> Tensor | None:
        shapes = {"none": None, "class": (self.batch,)}
        shape = shapes.get(self.config.condition, (self.batch, self.config.prefix_length))
        return None if shape is None else torch.zeros(shape, dtype=torch.int64, device=device)

    def _work(self) -> None:
        self.drawing.draw.invalid.zero_()
        self.drawing.run()

    @inference()
    def __call__(
        self,
        condition: Tensor | None,
        seeds: Tensor,
        params: SamplingParams,
        given_top_codes: Tensor | None = None,
        invalid: Tensor | None = None,
        guidance: Guidance | None = None,
        known: Known | None = None,
    ) -> tuple[Tensor, ...]:
        """Codes int64 [B, h, w] a level, the caller's own. Arguments and errors as for ``draw_codes``; ``invalid`` is a
        bool scalar that is set where logits were NaN."""
        params.check(self.config)
        if self.fused_draw and params.filtered:
            raise ValueError("this capture draws inside the head's product: expected neither top_k nor top_p; got some")
        self._check(condition, seeds, given_top_codes, guidance, known)
        with self.replay.turn():
            self.drawing.load(condition, seeds, params, given_top_codes, guidance, known)
            self.replay(self._work)
            if invalid is not None:
                invalid |= self.drawing.draw.invalid
            return tuple(level.clone() for level in self.drawing.maps())

    def _check(
        self,
        condition: Tensor | None,
        seeds: Tensor,
        given: Tensor | None,
        guidance: Guidance | None,
        known: Known | None,
    ) -> None:
        """ValueError on what the capture is not for."""
        own = (self.drawing.keep_top, self.guided, self.completing)
        asked = tuple(part is not None for part in (given, guidance, known))
        if len(seeds) != self.batch or own != asked:
            wanted, got = (
                f"top codes {'given' if kept else 'drawn'}{', guided' * led}{', some codes kept' * some}"
                for kept, led, some in (own, asked)
            )
            raise ValueError(f"this capture is for {self.batch} seeds, {wanted}; got {len(seeds)}, {got}")
        shape = None if self.drawing.condition is None else (self.batch, *self.drawing.condition.shape[1:])
        if shape is not None and (condition is None or condition.shape != shape):
            found = None if condition is None else list(condition.shape)
            raise ValueError(f"condition: expected {list(shape)}; got {found}")
        if guidance is not None:
            check_guided(self.config, condition, guidance)


# -------------------------------------------------------------------------------------------------------- captures kept

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
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[GraphCache], tuple[torch.device, int | None]]:
        return GraphCache, (self.device, self.limit)  # copies and pickles begin without captures

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The capture for ``key``, made by ``make`` if there is none. It has an attribute ``bytes``.

        A capture larger than the cap alone is kept all the same, as the only one. Where memory does not suffice for it,
        all others are given up first.
        """
        with self._lock:
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
        with self._lock:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._kept.clear()
            self._uses.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def report(self) -> list[CaptureReport]:
        """What is kept, the most recently used last."""
        return [CaptureReport(key, kept.bytes, self._uses[key]) for key, kept in self._kept.items()]
