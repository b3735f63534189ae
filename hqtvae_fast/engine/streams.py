"""Where the two halves of a batch run, its drawing and its decoding: one after the other, on two streams of a GPU, or
on a CPU in two threads.

Drawing codes is a chain of small products that waits for memory and leaves most of a GPU idle; decoding is arithmetic.
So the codes of one batch can be drawn while those of the batch before it are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hqtvae_fast.engine.options import Overlap
from hqtvae_fast.modes import inference

Codes = tuple[Tensor, ...]
Decode = Callable[[Codes, int], Tensor]
HIGH = -1
"""A stream's priority that comes before 0, which streams have by themselves."""


@dataclass(frozen=True)
class Drawn:
    """A batch's codes on the device, with their padding: the first ``count`` are wanted; ``invalid``, a bool scalar, is
    set where logits were NaN."""

    codes: Codes
    invalid: Tensor
    count: int


@dataclass(frozen=True)
class Done:
    """A batch on the CPU, without its padding: codes int64 [count, h, w] a level; images as ``decode`` gives them, or
    None; and whether any of its logits were NaN."""

    codes: Codes
    images: Tensor | None
    invalid: bool


class Streams(Protocol):
    ahead: int
    """How many batches are issued before the oldest one is waited for."""
    late: bool
    """Whether a failure may show while another batch is issued or waited for, as a device's does."""

    def drawing(self) -> AbstractContextManager[Any]:
        """What is issued inside is a batch's drawing."""

    def decoding(self, drawn: Drawn, decode: Decode | None) -> Callable[[], Done]:
        """Begin to decode it, or only to fetch its codes (None). What is returned waits for the batch, and holds what
        the device still reads until then."""

    def drain(self) -> None:
        """Wait for all that was issued, whatever has become of it."""

    def close(self) -> None:
        """Drain, and leave no thread behind."""


def make_streams(device: torch.device, overlap: Overlap | None = None, ahead: int | None = None) -> Streams:
    """``overlap``: None means "on" on a GPU. On a CPU, whose cores either half keeps busy, it is to be asked for, and
    "priority" is no more than "on". ``ahead``: None means 1; 0 wherever nothing overlaps."""
    most = 1 if ahead is None else ahead
    if device.type == "cuda":
        return GPUStreams(device, overlap or "on", most)
    return _Serial() if overlap in (None, "off") else _Threads(most)


class _Serial:
    """Each batch is finished before the next is begun."""

    ahead, late = 0, False

    def drawing(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def decoding(self, drawn: Drawn, decode: Decode | None) -> Callable[[], Done]:
        done = _finish(drawn, decode)
        return lambda: done

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Threads:
    """The caller draws, one thread beside it decodes; torch lets go of Python's lock inside its operators."""

    late = False

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._running: list[Future[Done]] = []

    def drawing(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def decoding(self, drawn: Drawn, decode: Decode | None) -> Callable[[], Done]:
        self._running = [future for future in self._running if not future.done()]
        future = self._decoder.submit(_finish, drawn, decode)
        self._running.append(future)
        return future.result

    def drain(self) -> None:
        for future in self._running:
            if not future.cancel():
                future.exception()  # waits; whoever waits for the batch is told, nobody else
        self._running.clear()

    def close(self) -> None:
        self.drain()
        self._decoder.shutdown()


@inference()  # a thread has modes of its own
def _finish(drawn: Drawn, decode: Decode | None) -> Done:
    images = None if decode is None else decode(drawn.codes, drawn.count)
    codes = tuple(level[: drawn.count].cpu() for level in drawn.codes)
    return Done(codes, None if images is None else images.cpu(), bool(drawn.invalid))


class GPUStreams:
    """Two streams of a GPU, or the caller's own; no threads. The host issues ``ahead`` batches beyond the one that it
    waits for."""

    late = True

    def __init__(self, device: torch.device, overlap: Overlap, ahead: int = 1) -> None:
        self.device, self.ahead = device, ahead if overlap != "off" else 0
        self._drawing: torch.cuda.Stream | None = None
        self._decoding: torch.cuda.Stream | None = None
        if overlap != "off":
            self._drawing = torch.cuda.Stream(device, priority=HIGH if overlap == "priority" else 0)
            self._decoding = torch.cuda.Stream(device)
        for stream in (self._drawing, self._decoding):
            if stream is not None:  # weights may still be on their way on the caller's stream
                stream.wait_stream(torch.cuda.current_stream(device))

    def drawing(self) -> AbstractContextManager[Any]:
        return _on(self._drawing)

    def decoding(self, drawn: Drawn, decode: Decode | None) -> Callable[[], Done]:
        if self._decoding is not None and self._drawing is not None:
            self._decoding.wait_stream(self._drawing)
        with _on(self._decoding):
            images = None if decode is None else decode(drawn.codes, drawn.count)
            codes = tuple(_to_host(level[: drawn.count]) for level in drawn.codes)
            pictures, wrong = None if images is None else _to_host(images), _to_host(drawn.invalid)
            event = torch.cuda.current_stream(self.device).record_event()
        held: list[Any] = [drawn, images]

        def wait() -> Done:
            event.synchronize()
            held.clear()
            # Copies: page-locked memory is little and dear, and a caller may keep what it gets.
            own = None if pictures is None else pictures.clone()
            return Done(tuple(level.clone() for level in codes), own, bool(wrong))

        return wait

    def drain(self) -> None:
        for stream in (self._drawing, self._decoding):
            if stream is not None:
                stream.synchronize()

    def close(self) -> None:
        # A device that has failed does so again here, and whoever waited for its batch has been told which that was.
        with suppress(RuntimeError):
            self.drain()


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _to_host(value: Tensor) -> Tensor:
    """A copy that does not hold up the host: only from page-locked memory can it run beside other work."""
    return torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
