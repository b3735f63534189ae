"""Time on a device: marks on the device's own clock, one timed run, and runs of several samplers taken in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.measuring.clocks import Watch
from benchmarks.measuring.environment import OtherWork

HELD = 1_000_000  # cycles of a GPU, about half a millisecond: what the host may take to issue a call


class Sampler(Protocol):
    """Something that makes images in two parts, each timed by itself."""

    name: str
    device: torch.device
    precision: str
    """What it computes in, for people."""
    parameters: int
    """Values in the transformer(s)."""
    steps: int
    """Autoregressive steps of one batch."""
    warm_ups: int
    """Batches until nothing is compiled, captured or packed any more."""

    def draw(self, count: int) -> Any:
        """Codes of ``count`` images, on the device, in whatever form :meth:`decode` takes."""

    def decode(self, codes: Any) -> Tensor:
        """Their pixels [count, 3, R, R] in [0, 1], on the device."""


class Marks:
    """Points in time on a device: the host's clock for a CPU, events on the current stream for a GPU.

    A GPU's event happens when the work issued before it is done, so that intervals hold the waiting for a slow host
    as well as the work, and nothing needs to wait between marks.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._points: list[Any] = []

    def mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._points.append(event)
        else:
            self._points.append(time.perf_counter())

    def intervals(self) -> list[float]:
        """Seconds between neighbouring marks; on a GPU this first waits for the last of them."""
        pairs = zip(self._points, self._points[1:], strict=False)
        if not self._cuda:
            return [end - start for start, end in pairs]
        self._points[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairs]  # events count milliseconds


@dataclass(frozen=True)
class Timing:
    """One run, in seconds: drawing codes (AR), and decoding them to pixels."""

    ar: float
    decode: float
    busy_elsewhere: float | None = None
    """CPUs that other work kept busy meanwhile, on average; None where the system does not tell."""
    clocks: dict[str, Any] | None = None
    """What :class:`benchmarks.measuring.clocks.Watch` saw; None on a CPU."""
    unfit: str | None = None
    """Why the run must not be quoted, as far as clocks tell."""
    joules: float | None = None
    """Energy of the GPU's board, where :class:`benchmarks.measuring.clocks.Watch` could count it."""

    @property
    def total(self) -> float:
        return self.ar + self.decode


def batch_sizes(images: int, batch: int) -> list[int]:
    """``images`` in batches of ``batch``, the last one of what is left."""
    return [min(batch, images - start) for start in range(0, images, batch)]


def time_run(sampler: Sampler, sizes: Sequence[int]) -> Timing:
    """Make batches of the given sizes, one after the other."""
    with Watch(sampler.device) as watch:
        marks = Marks(sampler.device)
        with OtherWork() as others:
            marks.mark()
            for count in sizes:
                codes = sampler.draw(count)
                marks.mark()
                sampler.decode(codes)
                marks.mark()
            seconds = marks.intervals()
    return Timing(sum(seconds[0::2]), sum(seconds[1::2]), others.cpus, watch.summary(), watch.unfit(), watch.joules)


def time_whole(run: Callable[[], Any], device: torch.device) -> Timing:
    """One run that has its pictures on the host when it ends, by the host's clock; all of it counts as ``ar``."""
    with Watch(device) as watch:
        started = time.perf_counter()
        with OtherWork() as others:
            run()
        wall = time.perf_counter() - started
    return Timing(wall, 0.0, others.cpus, watch.summary(), watch.unfit(), watch.joules)


def take_turns(counts: Sequence[int]) -> Iterator[int]:
    """Whose turn it is, for entrants who have ``counts[i]`` turns each: 0, 1, 0, 1, ..., so that a machine that slows
    down or speeds up during the measurement does so for all of them."""
    for turn in range(max(counts)):
        yield from (entrant for entrant, count in enumerate(counts) if turn < count)


def time_in_turns(run: Callable[[int], Timing], counts: Sequence[int]) -> list[list[Timing]]:
    """Timings of each entrant, ``run(entrant)`` being called in the order of :func:`take_turns`."""
    timings: list[list[Timing]] = [[] for _ in counts]
    for entrant in take_turns(counts):
        timings[entrant].append(run(entrant))
    return timings


def time_once(run: Callable[..., Any], inputs: tuple[Any, ...], device: torch.device) -> float:
    """Seconds of one call.

    On a GPU a tensor twice as large as the L2 cache is written first, which leaves nothing of the inputs in the cache.
    Then the GPU waits in a kernel of its own while the host issues the op: the events enclose the op's kernels, not the
    launching of them. (Writing alone takes 40 us, and issuing one of our operators about as long.)
    """
    if device.type == "cuda":
        torch.empty(2 * l2_bytes(device), dtype=torch.int8, device=device).zero_()
        torch.cuda._sleep(HELD)
    marks = Marks(device)
    marks.mark()
    run(*inputs)
    marks.mark()
    return marks.intervals()[0]


def l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size
