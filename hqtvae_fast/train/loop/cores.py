"""How many threads an update gets on a CPU: all, or one where another program has the cores.

Torch's threads wait for each other at the end of every operation. On idle cores that costs nothing that matters; where
another program has one of two cores, an operation lasts until that program's time slice ends, and training a small
model on two threads was ten times slower than on one (45 to 4 pictures/s, EPYC, at a load of 8). Nothing but trying
tells which it is, and it changes: see also :mod:`hqtvae_fast.threads`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

from hqtvae_fast.threads import one_thread

TRIED = 3  # updates with each, the first of which is not counted: it allocates
AGAIN = 500  # updates until the other number of threads is tried again
SLOWER = 1.5  # times the usual update: look at once


class Cores:
    """Gives updates, one after the other, to all threads or to one, by which of the two has been faster of late.

    Results of the two differ in rounding: who wants the same losses again sets ``OMP_NUM_THREADS=1``, which leaves
    nothing to choose.
    """

    def __init__(self, device: torch.device) -> None:
        self._choice = device.type == "cpu" and torch.get_num_threads() > 1
        self._alone = False
        self._usual: dict[bool, float] = {}  # seconds of an update, by whether it had one thread
        self._lately: list[float] = []
        self._since = 0  # updates since both were tried

    @contextmanager
    def update(self) -> Iterator[None]:
        """Around one update."""
        if not self._choice:
            yield
            return
        began = time.perf_counter()
        if self._alone:
            with one_thread():
                yield
        else:
            yield
        self._took(time.perf_counter() - began)

    def _took(self, seconds: float) -> None:
        self._lately.append(seconds)
        self._since += 1
        if len(self._lately) < TRIED:
            return
        now = median(self._lately[1:])
        other = self._usual.get(not self._alone)
        before = self._usual.get(self._alone, now)
        self._usual[self._alone] = now
        self._lately = self._lately[-1:]
        if other is None or self._since >= AGAIN or now > SLOWER * before:
            self._usual.pop(not self._alone, None)
            self._switch()
        elif other < now:
            self._switch()

    def _switch(self) -> None:
        self._alone, self._lately, self._since = not self._alone, [], 0
