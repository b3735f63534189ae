"""How many threads an update gets: the number that is faster, as the machine's load changes."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("accelerate", reason="training needs the train extra")

from hqtvae_fast.train.loop import cores as module
from hqtvae_fast.train.loop.cores import AGAIN, TRIED, Cores


class Clock:
    """A machine on which an update takes ``alone`` or ``together`` seconds."""

    def __init__(self, monkeypatch, alone: float, together: float) -> None:
        self.alone, self.together, self.now, self.had_one = alone, together, 0.0, []
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setattr(module, "one_thread", nullcontext)  # else it would leave the process with two

    def run(self, cores: Cores, updates: int) -> list[bool]:
        """Whether each of them had one thread."""
        taken = []
        for _ in range(updates):
            taken.append(cores._alone)
            with cores.update():
                self.now += self.alone if cores._alone else self.together
        return taken


@pytest.mark.parametrize("alone, together, best", [(1.0, 0.6, False), (1.0, 10.0, True)])
def test_the_faster_number_is_kept(monkeypatch, alone, together, best):
    taken = Clock(monkeypatch, alone, together).run(Cores(torch.device("cpu")), 100)
    assert {True, False} == set(taken[: 2 * TRIED])  # both are tried
    assert set(taken[2 * TRIED :]) == {best}


def test_a_change_of_the_load_is_seen(monkeypatch):
    clock = Clock(monkeypatch, 1.0, 0.6)
    cores = Cores(torch.device("cpu"))
    assert not clock.run(cores, 50)[-1]
    clock.together = 10.0  # another program begins
    assert clock.run(cores, 20)[-1]
    clock.together = 0.6  # and ends, which one thread cannot feel
    assert not clock.run(cores, AGAIN + 20)[-1]


def test_one_thread_or_a_gpu_leave_nothing_to_choose(monkeypatch):
    clock = Clock(monkeypatch, 1.0, 0.1)
    assert not any(clock.run(Cores(torch.device("cuda")), 10))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    cores = Cores(torch.device("cpu"))
    assert not any(clock.run(cores, 10))
    assert not cores._usual
