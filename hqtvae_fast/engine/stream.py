"""Batches in order, the codes of one drawn while the one before it is decoded.

On a GPU two streams share the device: drawing codes is a chain of small products that leaves most of it idle, decoding
is arithmetic. Nothing here is a thread: the host issues one batch ahead and waits for the older one, so a consumer that
is slow, stops or fails holds up nothing but the batch in flight. A CPU is kept busy by either half; there each batch is
finished before the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.engine.batches import Batch, Cutter, is_out_of_memory
from hqtvae_fast.engine.loop import NAN_LOGITS

Codes = tuple[Tensor, ...]


class GenerationError(RuntimeError):
    """The device failed; the message says in which images, with which conditions and seeds."""


@dataclass(frozen=True)
class Finished:
    """A batch on the CPU, without its padding: codes int64 [count, h, w] a level; images float32 [count, 3, R, R] in
    [0, 1], or None."""

    batch: Batch
    codes: Codes
    images: Tensor | None


@dataclass(frozen=True)
class Job:
    """What is done with each batch, in order: ``draw`` gives the codes of its rows and sets a bool scalar where logits
    were NaN, ``decode`` (None: not wanted) gives the pictures of the first rows of codes, as many as are asked for.
    Both only issue work on the device's current stream. ``describe`` names a batch to a user."""

    draw: Callable[[Batch, Tensor], Codes]
    decode: Callable[[Codes, int], Tensor] | None
    describe: Callable[[Batch], str]


def generate(
    job: Job, cutter: Cutter, device: torch.device, *, overlap: bool = True
) -> Generator[Finished, None, None]:
    """Do all batches; yields them in order.

    A batch that runs out of memory is done again in smaller ones (:meth:`Cutter.shrink`). ValueError and
    :class:`GenerationError` name the batch. ``overlap``: on a GPU, issue a batch ahead.
    """
    lanes = _Lanes(device, overlap)
    ahead = 1 if lanes.overlap else 0
    in_flight: deque[_InFlight] = deque()
    start = 0
    try:
        while start < cutter.total or in_flight:
            while start < cutter.total and len(in_flight) <= ahead:
                batch = cutter.next(start)
                issued = _issue(job, batch, lanes)
                if issued is not None:
                    in_flight.append(issued)
                    start = batch.stop
                elif in_flight:
                    break  # what is in flight holds memory too: take it first
                elif not cutter.shrink(batch):
                    raise MemoryError(f"{job.describe(batch)}: not enough memory for {batch.size} at once")
            with _named(job, in_flight[0].batch):
                finished = in_flight[0].wait()
            in_flight.popleft()
            yield finished
    finally:
        lanes.drain()  # nothing may run on in memory that is given back


def _issue(job: Job, batch: Batch, lanes: _Lanes) -> _InFlight | None:
    """None where memory does not suffice."""
    try:
        with _named(job, batch), torch.inference_mode():
            return lanes.issue(job, batch)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    lanes.drain()
    if lanes.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


@contextmanager
def _named(job: Job, batch: Batch) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{job.describe(batch)}: {error}") from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GenerationError(f"{job.describe(batch)}: {first}") from error


class _InFlight:
    """A batch whose work has been issued. Holds what the device still reads until it is done."""

    def __init__(
        self,
        batch: Batch,
        held: Any,
        codes: Codes,
        images: Tensor | None,
        invalid: Tensor,
        done: torch.cuda.Event | None,
    ) -> None:
        self.batch, self._held, self.codes, self.images = batch, held, codes, images
        self.invalid, self.done = invalid, done

    def wait(self) -> Finished:
        if self.done is not None:
            self.done.synchronize()
        self._held = None
        if bool(self.invalid):
            raise ValueError(NAN_LOGITS)
        return Finished(self.batch, self.codes, self.images)


class _Lanes:
    """The streams for drawing and for decoding; on a CPU none."""

    def __init__(self, device: torch.device, overlap: bool) -> None:
        self.device, self.overlap = device, overlap and device.type == "cuda"
        self.drawing = torch.cuda.Stream(device) if self.overlap else None
        self.decoding = torch.cuda.Stream(device) if self.overlap else None
        for stream in (self.drawing, self.decoding):
            if stream is not None:  # weights may still be on their way on the caller's stream
                stream.wait_stream(torch.cuda.current_stream(device))

    def issue(self, job: Job, batch: Batch) -> _InFlight:
        with self._on(self.drawing):
            invalid = torch.zeros((), dtype=torch.bool, device=self.device)
            drawn = job.draw(batch, invalid)
        if self.decoding is not None and self.drawing is not None:
            self.decoding.wait_stream(self.drawing)
        with self._on(self.decoding):
            kept = tuple(level[: batch.count] for level in drawn)
            images = None if job.decode is None else job.decode(drawn, batch.count)
            codes = tuple(self._to_host(level) for level in kept)
            pictures = None if images is None else self._to_host(images)
            wrong = self._to_host(invalid)
            done = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        return _InFlight(batch, (drawn, images, invalid), codes, pictures, wrong, done)

    def _on(self, stream: torch.cuda.Stream | None) -> Any:
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def _to_host(self, value: Tensor) -> Tensor:
        """A copy that does not hold up the host: only from page-locked memory can it run beside other work."""
        if value.device.type != "cuda":
            return value
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)

    def drain(self) -> None:
        for stream in (self.drawing, self.decoding):
            if stream is not None:
                stream.synchronize()
