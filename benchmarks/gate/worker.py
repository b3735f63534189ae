"""One side of a paired comparison: times its workload's parts when asked to, one line of JSON a request.

``python -m benchmarks.gate.worker '{"suite": "generate", "preset": "tiny", "batch": 4, "device": "cpu"}' SEED`` builds
the workload, answers with the parts' names, and then serves its stdin: ``{"part": NAME, "calls": N, "slow": 0.0}`` is
answered by ``{"seconds": S}``. It ends with its stdin. :mod:`benchmarks.gate.pairs` starts one of these a side for
every pair, and lets them take turns.

Each process is its own: where its memory lies decides about half a percent of its speed, and processes forked from one
that has imported torch would all have that one's luck. What is allocated later is moved about by SEED, too.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

import hqtvae_fast
from benchmarks.entrants.ours import Ours, open_model, same_for_all
from benchmarks.measuring.environment import describe
from benchmarks.measuring.timing import Marks
from benchmarks.suites.op_timing import SEED
from hqtvae_fast.ops.spec import all_specs

Parts = dict[str, Callable[[], Any]]


def generate_parts(device: torch.device, preset: str, batch: int, dtype: str = "auto") -> Parts:
    """Drawing codes, and decoding codes that were drawn once."""
    model = open_model(preset, None)
    ours = Ours(model, device, dtype, same_for_all(model.config.vae, 1.0, None, None))
    codes = ours.draw(batch)
    label = f"{preset}, batch {batch}"
    return {f"{label}: draw": lambda: ours.draw(batch), f"{label}: decode": lambda: ours.decode(codes)}


def ops_parts(device: torch.device, cases: list[list[str]]) -> Parts:
    """Each ``[op, case]`` as a user gets it, on the spec's own inputs. The cases' names must not repeat in an op."""
    specs, parts = all_specs(), {}
    for op, name in cases:
        spec = specs[op]
        case = next(case for case in (*spec.cases, *spec.small) if case.name == name)
        inputs = spec.make_inputs(case, device, SEED)
        parts[f"{op}, {name}"] = lambda run=spec.run, inputs=inputs: run(*inputs)
    return parts


# With one thread, a process's own CPU time leaves out the time in which others had its core; waiting, too.
CLOCKS: Mapping[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}
SUITES: Mapping[str, Callable[..., Parts]] = {"generate": generate_parts, "ops": ops_parts}


def timed(run: Callable[[], Any], calls: int, slow: float, clock: Callable[[], float]) -> float:
    """Seconds of ``calls`` calls, made longer by the share ``slow``: a planted loss, which a gate must find."""
    started = clock()
    for _ in range(calls):
        run()
    if slow:
        until = started + (clock() - started) * (1 + slow)
        while clock() < until:
            pass
    return clock() - started


def timed_on_gpu(run: Callable[[], Any], calls: int, device: torch.device) -> float:
    """The same between two events."""
    marks = Marks(device)
    marks.mark()
    for _ in range(calls):
        run()
    marks.mark()
    return sum(marks.intervals())


def serve(options: dict[str, Any], seed: int) -> None:
    """Build the workload and answer until stdin ends."""
    padding = _move_heap(seed)
    device = torch.device(options.pop("device"))
    torch.set_num_threads(options.pop("threads", 1))
    clock = CLOCKS[options.pop("clock", "cpu")]
    only = options.pop("part", "")
    parts = {name: run for name, run in SUITES[options.pop("suite")](device, **options).items() if name.endswith(only)}
    for run in parts.values():
        run()
    _answer(
        parts=list(parts), package=hqtvae_fast.__file__, environment=describe(device, "gate.worker"), hash=hash("hash")
    )
    gc.disable()  # a collection in one side's turn would count against it
    gc.freeze()  # what is there now stays, and need not be looked through between turns
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        run, calls, slow = parts[asked["part"]], asked["calls"], asked.get("slow", 0.0)
        if slow and device.type != "cpu":
            raise ValueError("slow: expected 0 on a GPU, whose time a busy host does not fill")
        _answer(seconds=timed(run, calls, slow, clock) if device.type == "cpu" else timed_on_gpu(run, calls, device))
        gc.collect()
    del padding


def _move_heap(seed: int) -> list[Any]:
    """Small and large blocks of random sizes, to be held: what is allocated after them lies elsewhere."""
    draw = random.Random(seed)
    small = [bytearray(draw.randrange(16, 4096)) for _ in range(draw.randrange(64))]
    return [*small, *(torch.empty(draw.randrange(1, 2**22), dtype=torch.uint8) for _ in range(draw.randrange(8)))]


def _answer(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]), int(sys.argv[2]))
