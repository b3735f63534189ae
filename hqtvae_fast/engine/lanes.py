"""Where the two halves of a batch run, its drawing and its decoding: one after the other, on two streams of a GPU, or
on a CPU in two threads.

Drawing codes is a chain of small products that waits for memory and leaves most of a GPU idle; decoding is arithmetic.
So the codes of one batch can be drawn while those of the batch before it are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hqtvae_fast.engine.batches import Batch
from hqtvae_fast.modes import inference

Codes = tuple[Tensor, ...]


@dataclass(frozen=True)
class Job:
    """What is done with each batch, in order: ``draw`` gives the codes of its rows and sets a bool scalar where logits
    were NaN, ``decode`` (None: not wanted) gives the pictures of the first rows of codes, as many as are asked for.
    Both only issue work on the device's current stream. ``describe`` names a batch to a user."""

    draw: Callable[[Batch, Tensor], Codes]
    decode: Callable[[Codes, int], Tensor] | None
    describe: Callable[[Batch], str]


@dataclass(frozen=True)
class Done:
    """A batch on the CPU, without its padding: codes int64 [count, h, w] a level; images as the job decodes them, or
    None; and whether any of its logits were NaN."""

    codes: Codes
    images: Tensor | None
    invalid: bool


class Lanes(Protocol):
    ahead: int
    """How many batches are issued before the oldest one is waited for."""
    late: bool
    """Whether a failure may show while another batch is issued or waited for, as a device's does."""

    def issue(self, job: Job, batch: Batch) -> Callable[[], Done]:
        """Begin a batch; what is returned waits for it, and holds what the device still reads until then."""

    def drain(self) -> None:
        """Wait for all that was issued, whatever has become of it."""

    def close(self) -> None:
        """Drain, and leave no thread behind."""


def make_lanes(device: torch.device, overlap: bool | None = None) -> Lanes:
    """``overlap``: None means on a GPU. On a CPU, whose cores either half keeps busy, it is to be asked for."""
    if device.type == "cuda":
        return _Streams(device, overlap is not False)
    return _Threads(device) if overlap else _Serial(device)


class _Serial:
    """Each batch is finished before the next is begun."""

    ahead, late = 0, False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def issue(self, job: Job, batch: Batch) -> Callable[[], Done]:
        codes, invalid = _draw(job, batch, self.device)
        done = _decode(job, batch, codes, invalid)
        return lambda: done

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Threads:
    """The caller draws, one thread beside it decodes; torch lets go of Python's lock inside its operators."""

    ahead, late = 1, False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._running: list[Future[Done]] = []

    def issue(self, job: Job, batch: Batch) -> Callable[[], Done]:
        codes, invalid = _draw(job, batch, self.device)
        self._running = [future for future in self._running if not future.done()]
        future = self._decoder.submit(_decode, job, batch, codes, invalid)
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


def _draw(job: Job, batch: Batch, device: torch.device) -> tuple[Codes, Tensor]:
    invalid = torch.zeros((), dtype=torch.bool, device=device)
    return job.draw(batch, invalid), invalid


@inference()  # a thread has modes of its own
def _decode(job: Job, batch: Batch, drawn: Codes, invalid: Tensor) -> Done:
    images = None if job.decode is None else job.decode(drawn, batch.count)
    codes = tuple(level[: batch.count].cpu() for level in drawn)
    return Done(codes, None if images is None else images.cpu(), bool(invalid))


class _Streams:
    """Two streams of a GPU, or one; no threads. The host issues one batch ahead and waits for the older one."""

    late = True

    def __init__(self, device: torch.device, overlap: bool) -> None:
        self.device, self.ahead = device, int(overlap)
        self.drawing = torch.cuda.Stream(device) if overlap else None
        self.decoding = torch.cuda.Stream(device) if overlap else None
        for stream in (self.drawing, self.decoding):
            if stream is not None:  # weights may still be on their way on the caller's stream
                stream.wait_stream(torch.cuda.current_stream(device))

    def issue(self, job: Job, batch: Batch) -> Callable[[], Done]:
        with self._on(self.drawing):
            drawn, invalid = _draw(job, batch, self.device)
        if self.decoding is not None and self.drawing is not None:
            self.decoding.wait_stream(self.drawing)
        with self._on(self.decoding):
            images = None if job.decode is None else job.decode(drawn, batch.count)
            codes = tuple(_to_host(level[: batch.count]) for level in drawn)
            pictures, wrong = None if images is None else _to_host(images), _to_host(invalid)
            event = torch.cuda.current_stream(self.device).record_event()
        held: list[Any] = [drawn, images, invalid]

        def wait() -> Done:
            event.synchronize()
            held.clear()
            # Copies: page-locked memory is little and dear, and a caller may keep what it gets.
            own = None if pictures is None else pictures.clone()
            return Done(tuple(level.clone() for level in codes), own, bool(wrong))

        return wait

    def _on(self, stream: torch.cuda.Stream | None) -> Any:
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def drain(self) -> None:
        for stream in (self.drawing, self.decoding):
            if stream is not None:
                stream.synchronize()

    def close(self) -> None:
        # A device that has failed does so again here, and whoever waited for its batch has been told which that was.
        with suppress(RuntimeError):
            self.drain()


def _to_host(value: Tensor) -> Tensor:
    """A copy that does not hold up the host: only from page-locked memory can it run beside other work."""
    return torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
