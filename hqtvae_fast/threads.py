"""How many of a CPU's threads a piece of work gets: one, where it is small and others want the cores.

Torch gives every operation all threads, and at its end each waits for the others, spinning for milliseconds first. On
idle cores that costs microseconds. Where another process has one of the cores, an operation of microseconds lasts
until that process's time slice ends, 12 to 60 ms: on two cores with ten processes, drawing eight pictures of the demo
model (0.08 s on one thread) took 1.9 to 5.3 s on two, decoding them (0.06 s) 1.2 to 1.5 s (EPYC, libgomp). On idle
cores two threads are the faster ones from operations of 20 us on, and every model has those.

What is larger keeps all threads always: how often it waits in vain there is its user's to choose, by
``OMP_WAIT_POLICY=passive`` in the environment before torch is loaded.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import torch

from hqtvae_fast.config import HQTVAEConfig, TransformerConfig, VAEConfig

SMALL = 4e9
"""FLOPs: a tenth of a second of one core (60 to 200 GFLOP/s on an EPYC). The demo model takes 0.4 a picture to draw and
0.6 to decode, preset S 125 and 180."""

LOAD = Path("/proc/loadavg")
"""Where Linux says how many threads run or would, on all cores together."""


@contextmanager
def threads_for(flops: float) -> Iterator[None]:
    """What this thread runs in here gets one thread where ``flops`` are few and the cores are not free, else what it
    had. Only the calling thread's own count is changed, and only down: ``torch.set_num_threads`` would also be
    inherited by every thread that first uses torch meanwhile, for good. Without OpenMP nothing changes.
    """
    if flops < SMALL and not _free(torch.get_num_threads()):
        with one_thread():
            yield
    else:
        yield


def one_thread() -> AbstractContextManager[None]:
    return at_most(1)


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """What this thread runs in here gets no more threads than so many; as :func:`threads_for`, whatever the work and
    the machine."""
    before = torch.get_num_threads()  # asking also makes torch set this thread's count, if new
    runtime = _runtime() if before > threads else None
    if runtime is None:
        yield
        return
    set_openmp, set_mkl = runtime
    set_openmp(threads)
    mkl = set_mkl(threads)
    try:
        yield
    finally:
        set_openmp(before)
        set_mkl(mkl)


def _free(threads: int) -> bool:
    """Whether this many of the machine's cores are free for us at this moment; where it does not say, they are."""
    if threads == 1:
        return True
    try:
        running = int(LOAD.read_text(encoding="ascii").split()[3].partition("/")[0])
        free = (os.cpu_count() or 1) - running
        return free >= threads or free + _own_running() >= threads
    except (OSError, ValueError, IndexError):
        return True


def _own_running() -> int:
    """Threads of this process that run or would: the caller, and those that still spin after the last operation."""
    states = (task.joinpath("stat").read_bytes().rpartition(b") ")[2][:1] for task in Path("/proc/self/task").iterdir())
    return sum(state == b"R" for state in states)


@cache
def _runtime() -> tuple[Callable[[int], object], Callable[[int], int]] | None:
    """What sets the calling thread's count in the libraries that torch has loaded: of OpenMP, and of MKL (which gives
    the count before, 0 for none of its own)."""
    libraries = ctypes.CDLL(torch._C.__file__)  # a name is looked up in what it depends on, too
    set_openmp = getattr(libraries, "omp_set_num_threads", None)
    set_mkl = getattr(libraries, "MKL_Set_Num_Threads_Local", None)
    return None if set_openmp is None else (set_openmp, set_mkl or (lambda count: 0))


# ----------------------------------------------------------------------------------------------------------- arithmetic

# Roughly how much a configuration asks for: products and convolutions, which are nearly all of it.
# :mod:`hqtvae_fast.model.cost` counts exactly, by running the modules on shapes, which takes half a second.

BLOCK = 12  # width^2 values of a transformer block: 3 for queries, keys and values, 1 after attention, 2 x 4 of the MLP
CONV = 9  # width^2 values of a 3x3 convolution


@cache
def drawing_flops(config: TransformerConfig) -> float:
    """FLOPs of drawing one picture's codes."""
    D, local = config.dim, config.num_local
    body = config.num_steps + config.prefix_positions
    head = config.num_steps * local
    logits = sum(width * size for width, size in zip(config.level_widths, config.codebook_sizes, strict=True))
    blocks = BLOCK * D * D * (body * config.body.num_layers + head * config.head.num_layers)
    return 2.0 * (blocks + config.num_steps * D * logits)


@cache
def decoding_flops(config: VAEConfig) -> float:
    """FLOPs of decoding one picture; encoding takes fewer."""
    halved = int(config.init_downsample)
    side, flops = config.resolution >> halved, 0.0
    for level, multiplier in enumerate(config.channel_multipliers):  # from the picture's side on
        # A resampling convolution's larger map has the next level's side, four times the pixels.
        convolutions = 2 * (config.num_res_blocks + 1) + (4 if level > 0 or halved else 0)
        flops += 2.0 * CONV * (config.channels * multiplier * side) ** 2 * convolutions
        side //= 2
    return flops


def picture_flops(config: HQTVAEConfig) -> float:
    """FLOPs of the larger half of one picture."""
    stages = [stage2 for stage2 in (config.transformer, config.refiner) if stage2 is not None]
    return max([decoding_flops(config.vae), *map(drawing_flops, stages)])
