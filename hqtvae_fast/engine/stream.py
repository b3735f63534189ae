"""Batches in order, one issued ahead of the one that is waited for (:mod:`hqtvae_fast.engine.lanes`).

A consumer that is slow, stops or fails holds up nothing but the batch in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from hqtvae_fast.engine.batches import Batch, Cutter, is_out_of_memory
from hqtvae_fast.engine.lanes import Codes, Done, Job, Lanes, make_lanes
from hqtvae_fast.engine.loop import NAN_LOGITS
from hqtvae_fast.modes import inference, ordinary

_T = TypeVar("_T")


class GenerationError(RuntimeError):
    """The device failed; the message says in which images, with which conditions and seeds; or in which batches it was
    at work, for a GPU tells of a failure later."""


@dataclass(frozen=True)
class Finished:
    """A batch on the CPU, without its padding: codes int64 [count, h, w] a level; images as the job decodes them, or
    None."""

    batch: Batch
    codes: Codes
    images: Tensor | None


@dataclass(frozen=True)
class _InFlight:
    batch: Batch
    wait: Callable[[], Done]


def generate(
    job: Job, cutter: Cutter, device: torch.device, *, overlap: bool | None = None
) -> Generator[Finished, None, None]:
    """Do all batches; yields them in order.

    A batch that runs out of memory is done again in smaller ones (:meth:`Cutter.shrink`). ValueError and
    :class:`GenerationError` name the batch. ``overlap``: draw a batch while the one before it is decoded; None: on a
    GPU.
    """
    lanes = make_lanes(device, overlap)
    in_flight: deque[_InFlight] = deque()
    start = 0
    try:
        while start < cutter.total or in_flight:
            while start < cutter.total and len(in_flight) <= lanes.ahead:
                batch = cutter.next(start)
                running = [*(flight.batch for flight in in_flight), batch]
                issued = _attempt(job, running if lanes.late else [batch], lanes, partial(lanes.issue, job, batch))
                if issued is not None:
                    in_flight.append(_InFlight(batch, issued))
                    start = batch.stop
                elif in_flight:
                    break  # what is in flight holds memory too: take it first
                else:
                    _shrink(job, cutter, batch)
            running = [flight.batch for flight in in_flight]
            oldest = in_flight.popleft()
            done = _attempt(job, running if lanes.late else running[:1], lanes, oldest.wait)
            if done is None:  # again from there on, smaller
                in_flight.clear()
                _shrink(job, cutter, oldest.batch)
                start = oldest.batch.start
                continue
            if done.invalid:
                raise ValueError(f"{job.describe(oldest.batch)}: {NAN_LOGITS}")
            images = None if done.images is None else ordinary(done.images)
            yield Finished(oldest.batch, tuple(map(ordinary, done.codes)), images)
    finally:
        lanes.close()  # nothing may run on in memory that is given back


def _shrink(job: Job, cutter: Cutter, batch: Batch) -> None:
    if not cutter.shrink(batch):
        raise MemoryError(f"{job.describe(batch)}: not enough memory for {batch.size} at once")


def _attempt(job: Job, batches: Sequence[Batch], lanes: Lanes, work: Callable[[], _T]) -> _T | None:
    """What ``work`` gives; None where memory does not suffice, and then nothing is running any more. ``batches``: those
    that may have failed if it fails."""
    try:
        with _named(job, batches), inference():
            return work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    lanes.drain()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


@contextmanager
def _named(job: Job, batches: Sequence[Batch]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # the host's, of the last batch
        raise ValueError(f"{job.describe(batches[-1])}: {error}") from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GenerationError(f"{' or '.join(map(job.describe, batches))}: {first}") from error
