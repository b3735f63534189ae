"""One case of one op: checked, then timed with each backend and each baseline in turn."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring.clocks import Watch
from benchmarks.measuring.environment import OtherWork
from benchmarks.measuring.memory import TooLarge, guarded, require
from benchmarks.measuring.timing import l2_bytes, take_turns, time_once
from hqtvae_fast.backend import BackendError, choose
from hqtvae_fast.hardware import Device, floor_seconds, fp32_products
from hqtvae_fast.ops.spec import Case, Cost, Spec

SEED = 0
LEAST_COPIES_OF_WORK = 3  # what a case needs at least: its inputs, a second set of them to check with, and the result
SECONDS_EACH = 5.0  # about what the runs of one entrant may take in all, beyond the first few
FEWEST_RUNS = 3
LONGEST_CALL = 20.0  # seconds: what takes longer (bf16 on a CPU that emulates it) is left out, so that --all ends
CHECK_SECONDS = 5.0
# What the references, float64 and plain torch on a CPU, reach for sure on one thread: where a check would take longer
# than CHECK_SECONDS by these rates, it is left out. A 1024^3 fp64 GEMM reaches 40 GFLOP/s on an EPYC's core.
CHECK_FLOPS, CHECK_BANDWIDTH = 1e10, 1e9
MOST_COPIES = 256  # of inputs that are rotated; the clearing between runs covers the smallest cases


@dataclass(frozen=True)
class Entrant:
    """A way to the result. ``ours``: by the op itself, with one of its backends."""

    name: str
    run: Callable[..., Any]
    ours: bool


@dataclass(frozen=True)
class Row:
    """One entrant's runs on one case, in seconds. ``ratio``: its median over that of the backend that a user gets."""

    op: str
    case: str
    what: str
    ours: bool
    seconds: list[float]
    cost: Cost
    floor: float
    ratio: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def wins(self) -> bool:
        """Whether it is faster than what a user gets."""
        return self.ratio < 1


@dataclass
class Outcome:
    """Rows, and what a reader must know: what was left out, not checked, or failed; a line each."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    busy_elsewhere: dict[str, float] = field(default_factory=dict)
    clocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """How each case is measured."""

    device: torch.device
    peaks: Device
    repeats: int
    backends: tuple[str, ...] = ()
    """Of ours; empty: all that the op's spec lists."""
    check: bool = True


def measure(spec: Spec, case: Case, plan: Plan, outcome: Outcome) -> None:
    """Add the case's rows to ``outcome``, or the line that says why there are none. Products of fp32 are fp32's: by
    default torch's convolutions would be TF32's on a GPU, which ours are not and no tolerance allows."""
    with fp32_products(plan.device, tf32=False):
        _measure(spec, case, plan, outcome)


def _measure(spec: Spec, case: Case, plan: Plan, outcome: Outcome) -> None:
    where = f"{spec.op}, {case.name}"
    cost = spec.cost(case)
    try:
        require(where, LEAST_COPIES_OF_WORK * cost.bytes, plan.device)
        with guarded(where, plan.device):
            pristine = spec.make_inputs(case, plan.device, SEED)
            ours, entrants = _entrants(spec, pristine, plan)
            if not _check(spec, cost, pristine, [e for e in entrants if e.ours], plan, where, outcome):
                return
            copies = _rotation(pristine, plan.device)
            del pristine
            ready = _warm_up(entrants, copies, plan, where, outcome)
            seconds = _time(ready, copies, plan, where, outcome)
    except TooLarge as error:
        outcome.notes.append(f"refused: {error}")
        return
    except BackendError as error:
        outcome.notes.append(f"{where}: {error}")
        return
    # What a user gets is compared with the others; where it was not asked for, the first of ours that was.
    first = next((name for name in (ours, *seconds) if name in seconds), None)
    for entrant, _ in ready:
        runs = seconds[entrant.name]
        ratio = statistics.median(runs) / statistics.median(seconds[first]) if first else 1.0
        floor = floor_seconds(cost.flops, cost.bytes, plan.peaks)
        outcome.rows.append(Row(spec.op, case.name, entrant.name, entrant.ours, runs, cost, floor, ratio))


# ------------------------------------------------------------------------------------------------------ who takes part


def _entrants(spec: Spec, inputs: tuple[Any, ...], plan: Plan) -> tuple[str, list[Entrant]]:
    """The name of the entrant that a user gets, and all, ours first."""
    names = plan.backends or tuple(each.name for each in spec.backends if not each.tile or not each.why_not(*inputs))
    if not names:
        mine = [Entrant("ours", spec.run, True)]
    else:
        mine = [Entrant(f"ours: {name}", _with_backend(spec, name), True) for name in names]
    chosen = mine[0].name
    if spec.backends and not plan.backends:
        chosen = f"ours: {choose(spec.op, spec.backends, *inputs).backend.name}"
    return chosen, mine + [Entrant(name, run, False) for name, run in spec.baselines.items()]


def _with_backend(spec: Spec, name: str) -> Callable[..., Any]:
    return lambda *inputs: spec.run(*inputs, backend=name)


def _check(
    spec: Spec, cost: Cost, inputs: tuple[Any, ...], ours: Sequence[Entrant], plan: Plan, where: str, outcome: Outcome
) -> bool:
    """Hold each of ours to the reference; False if one is wrong, and the case is not timed then."""
    if not plan.check:
        outcome.unchecked.append(f"{where}: --no-check")
        return True
    threads = torch.get_num_threads()
    expected = max(cost.flops / (CHECK_FLOPS * threads), cost.bytes / CHECK_BANDWIDTH)
    if expected > CHECK_SECONDS:
        outcome.unchecked.append(f"{where}: the reference would take about {expected:.0f} s")
        return True
    try:
        with guarded(f"{where}: the reference", plan.device):
            wanted = spec.reference(*map_tensors(lambda tensor: fresh(tensor).cpu(), inputs))
    except TooLarge as error:
        outcome.unchecked.append(str(error))
        return True
    right = True
    for entrant in ours:
        try:
            spec.check(entrant.run(*map_tensors(fresh, inputs)), wanted, inputs)
        except BackendError:
            continue  # the warm-up will say so
        except AssertionError as error:
            outcome.failures.append(f"{where}: {entrant.name} is wrong, the case is not timed: {first_line(error)}")
            right = False
    return right


def _warm_up(
    entrants: Sequence[Entrant], copies: Iterator[tuple[Any, ...]], plan: Plan, where: str, outcome: Outcome
) -> list[tuple[Entrant, int]]:
    """Those that can run, each with the number of runs that it gets: fewer where one takes long."""
    ready = []
    for entrant in entrants:
        try:
            with guarded(f"{where}: {entrant.name}", plan.device):
                entrant.run(*next(copies))  # compiles, packs weights, fills caches
                seconds = time_once(entrant.run, next(copies), plan.device)
        except TooLarge as error:
            outcome.notes.append(f"left out: {error}")
        except BackendError as error:
            outcome.notes.append(f"left out: {where}: {error}")
        except Exception as error:
            if entrant.ours:
                raise
            # Another's library failed on this case, not ours: it costs no row but its own.
            outcome.notes.append(f"left out: {where}: {entrant.name}: {type(error).__name__}: {first_line(error)}")
        else:
            if seconds > LONGEST_CALL:
                outcome.notes.append(f"left out: {where}: {entrant.name}: a call takes {seconds:.0f} s")
                continue
            fit = int(SECONDS_EACH / max(seconds, 1e-9))
            ready.append((entrant, min(plan.repeats, max(FEWEST_RUNS, fit))))
    return ready


# ------------------------------------------------------------------------------------------------------------- the runs


def _time(
    ready: Sequence[tuple[Entrant, int]],
    copies: Iterator[tuple[Any, ...]],
    plan: Plan,
    where: str,
    outcome: Outcome,
) -> dict[str, list[float]]:
    """Seconds of each run by entrant, taken in turn: ours, theirs, ours, theirs, ..."""
    seconds: dict[str, list[float]] = {entrant.name: [] for entrant, _ in ready}
    if not ready:
        return seconds
    with OtherWork() as others, Watch(plan.device) as watch:
        for turn in take_turns([count for _, count in ready]):
            entrant, _ = ready[turn]
            seconds[entrant.name].append(time_once(entrant.run, next(copies), plan.device))
    if (summary := watch.summary()) is not None:
        outcome.clocks[where] = summary
    if (unfit := watch.unfit()) is not None:
        outcome.unfit[where] = unfit
    if others.cpus is not None:
        outcome.busy_elsewhere[where] = others.cpus
    return seconds


def _rotation(inputs: tuple[Any, ...], device: torch.device) -> Iterator[tuple[Any, ...]]:
    """The inputs for ever; on a GPU in turn with copies of them, as many as together are twice the L2 cache."""
    copies = 1
    if device.type == "cuda":
        copies = min(MOST_COPIES, 2 + 2 * l2_bytes(device) // max(1, num_bytes(inputs)))
    return itertools.cycle([map_tensors(fresh, inputs) for _ in range(copies)])


def fresh(tensor: Tensor) -> Tensor:
    """A copy with the same strides, a leaf like the original: some ops write to their inputs, some need a gradient."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same value, tuples and lists of tensors included, with ``change`` applied to each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        parts = [map_tensors(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def num_bytes(value: Any) -> int:
    """Bytes of all tensors in it."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(num_bytes, value)) if isinstance(value, (tuple, list)) else 0
