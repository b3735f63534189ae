"""Two sides timed in turn: A B A B ... part by part, in several pairs of processes, every other pair B A B A ...

Whatever slows the machine down for longer than one turn slows both down, and the quotient keeps still. Neither side
ever follows itself: a turn after one of the same process finds its data in the caches (about half a percent), and with
A B B A ... one side has more of these than the other in any number of turns. A pair of processes is one unit of the
statistics: its quotients are summed up by their median, so that what belongs to the processes (where their memory lies,
which core they got) counts once and not once a turn.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WARM_UP = 8  # calls of each side and part that do not count; CPython itself adapts code within the first few
Samples = dict[str, list[list[float]]]  # by part: seconds a call, [process][turn]


@dataclass(frozen=True)
class Side:
    """Who is timed: ``folder`` is what its worker runs in (:mod:`benchmarks.gate.revisions`), ``slow`` a planted loss.
    Sides of one folder share a process."""

    name: str
    folder: Path
    slow: float = 0.0


@dataclass(frozen=True)
class Plan:
    """``rounds`` pairs of processes, ``turns`` of each side in each, each turn ``least_seconds`` long or one call."""

    workload: dict[str, Any]
    rounds: int = 12
    turns: int = 16
    least_seconds: float = 0.02


class Worker:
    """A running :mod:`benchmarks.gate.worker` of one folder. Use as a context manager: it ends with it.

    ``hashes``: what Python's hashes are seeded with. It decides how dictionaries lie, so both sides of a pair get the
    same, and every pair another. ``seed``: of what else is left to luck; different everywhere.
    """

    def __init__(self, folder: Path, workload: dict[str, Any], hashes: int = 0, seed: int = 0) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by __exit__)
        environment = {**os.environ, "OMP_NUM_THREADS": str(workload.get("threads", 1))}
        environment["PYTHONHASHSEED"] = str(hashes)
        environment.pop("PYTHONPATH", None)  # what is timed is what lies in the folder
        command = [sys.executable, "-m", "benchmarks.gate.worker", json.dumps(workload), str(seed)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=self._errors, text=True
        )
        self._folder = folder

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._errors.close()

    def listen(self) -> dict[str, Any]:
        """The next answer; RuntimeError with the end of its errors if it has died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            tail = (self._errors.read().strip().splitlines() or ["without a word"])[-1]
            raise RuntimeError(f"the worker in {self._folder} ended with {self._process.returncode}: {tail}")
        return json.loads(line)

    def say(self, **fields: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # listening says why
            print(json.dumps(fields), file=self._process.stdin, flush=True)

    def ask(self, part: str, calls: int, slow: float = 0.0) -> float:
        """Seconds a call."""
        self.say(part=part, calls=calls, slow=slow)
        return self.listen()["seconds"] / calls

    def ready(self) -> dict[str, Any]:
        """What a fresh process says of itself; RuntimeError if it has imported another package than its folder's."""
        said = self.listen()
        expected = (self._folder / "hqtvae_fast").resolve()
        if Path(said["package"]).resolve().parent != expected:
            raise RuntimeError(f"the worker in {self._folder}: expected {expected}; got {said['package']}")
        return said


@dataclass
class Paired:
    """Samples of the first side and of another one, turn by turn, and what their workers said of their surroundings."""

    samples: list[Samples] = field(default_factory=lambda: [{}, {}])
    environments: list[dict[str, Any]] = field(default_factory=list)

    def log_ratios(self, part: str) -> list[float]:
        """log(other / first) of each pair of processes: the median over its turns."""
        rounds = zip(*(side[part] for side in self.samples), strict=True)
        return [statistics.median(math.log(new / base) for base, new in zip(*turns, strict=True)) for turns in rounds]


def measure(sides: Sequence[Side], plan: Plan, say: Callable[[str], None] = lambda line: None) -> list[Paired]:
    """Time all sides: each one after the first, paired with turns of the first one."""
    paired = [Paired() for _ in sides[1:]]
    for number in range(plan.rounds):
        _round(sides, plan, paired, number)
        say(f"round {number + 1} of {plan.rounds}")
    return paired


def _round(sides: Sequence[Side], plan: Plan, paired: list[Paired], number: int) -> None:
    """A fresh process for each folder, and all turns of all parts."""
    folders = list(dict.fromkeys(side.folder for side in sides))
    with contextlib.ExitStack() as stack:
        workers = {
            folder: stack.enter_context(Worker(folder, plan.workload, number + 1, number * len(folders) + index))
            for index, folder in enumerate(folders)
        }
        said = {folder: worker.ready() for folder, worker in workers.items()}
        for pair, side in zip(paired, sides[1:], strict=True):
            pair.environments = pair.environments or [said[one.folder]["environment"] for one in (sides[0], side)]
        for part in said[sides[0].folder]["parts"]:
            _take_turns(part, sides, workers, plan, paired, number)


def _take_turns(
    part: str, sides: Sequence[Side], workers: dict[Path, Worker], plan: Plan, paired: list[Paired], number: int
) -> None:
    # As many for each: with fewer calls behind it, a side would look slower than it is. Who begins is warmed first.
    direction = -1 if number % 2 else 1
    order = list(workers)[::direction]
    warm_up = {folder: min(workers[folder].ask(part, 1) for _ in range(WARM_UP)) for folder in order}
    calls = max(1, math.ceil(plan.least_seconds / warm_up[sides[0].folder]))
    for pair in paired:
        for samples in pair.samples:
            samples.setdefault(part, []).append([])
    for _ in range(plan.turns):
        for pair, side in zip(paired, sides[1:], strict=True):
            turns = [(sides[0], pair.samples[0]), (side, pair.samples[1])]
            for who, samples in turns[::direction]:
                samples[part][-1].append(workers[who.folder].ask(part, calls, who.slow))
