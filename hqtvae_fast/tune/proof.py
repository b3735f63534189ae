"""What a variant must do before it is timed: the right numbers by the op's own check against float64, from several
inputs, hard ones among them; the same bits twice; and nothing else, to its inputs, to memory that is not its own, nor
kept.

Run in a worker process (:mod:`hqtvae_fast.tune.worker`): what is proven here may also crash, hang or spoil the device.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hqtvae_fast.ops.spec import Case, Spec
from hqtvae_fast.tune.guards import FILLS, Guards, same_bits

SEEDS = (0, 1, 2)
LARGE = 2e10
"""FLOPs from which on one seed and one hard input must do: float64 on a CPU takes seconds."""


class WrongError(Exception):
    """A variant is not right; the message says how."""


@dataclass
class Trial:
    """Inputs, what float64 gives for them, and what the default variant gives, once somebody has asked."""

    name: str
    inputs: tuple[Any, ...]
    wanted: Any
    default: Any = None


@dataclass
class Trials:
    """Of one case, made once for all of its variants."""

    spec: Spec
    case: Case
    device: torch.device
    seeds: tuple[int, ...] = SEEDS
    made: list[Trial] = field(default_factory=list)

    def __iter__(self) -> Iterator[Trial]:
        if not self.made:
            self.made = [self._trial(name, inputs) for name, inputs in self._inputs()]
        return iter(self.made)

    def _inputs(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        few = self.spec.cost(self.case).flops > LARGE
        for seed in self.seeds[:1] if few else self.seeds:
            yield f"seed {seed}", self.spec.make_inputs(self.case, self.device, seed)
        for name, change in list(HARD.items())[: 1 if few else None]:
            inputs = self.spec.make_inputs(self.case, self.device, self.seeds[0])
            floating = [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
            if floating and floating[0].itemsize > 1:  # eight bits were rounded with the scale that goes with them
                change(floating[0])
                self.spec.derive(*inputs)
                yield name, inputs

    def _trial(self, name: str, inputs: tuple[Any, ...]) -> Trial:
        return Trial(name, inputs, self.spec.reference(*Guards(FILLS[0]).copies(inputs)))


HARD: dict[str, Callable[[Tensor], object]] = {
    "rows of ten times the size": lambda x: x[::2].mul_(10),
    "zeros": lambda x: x.zero_(),
    "one value throughout": lambda x: x.fill_(0.75),
}
"""What is done to the first floating input, the activations, of seeded ones."""


@dataclass(frozen=True)
class Proof:
    """``same_bits``: whether results were those of the default variant, bit for bit, for every seed."""

    same_bits: bool


def prove(trials: Trials, variant: str, default: str | None) -> Proof:
    """Raises :class:`WrongError`, or whatever the variant raises. ``default``: what bits are compared with, already
    proven; None: nothing."""
    same = True
    for trial in trials:
        got = _attempt(trials, trial, variant, FILLS[0])
        _check(trials.spec, trial, got)
        if not same_bits(got, _attempt(trials, trial, variant, FILLS[1])):
            raise WrongError(f"{trial.name}: other bits the second time")
        if trial.default is None and default is not None:
            trial.default = got if variant == default else _attempt(trials, trial, default, FILLS[0])
        if trial.name.startswith("seed"):
            same = same and default is not None and same_bits(got, trial.default)
    _check_leaks(trials, variant)
    return Proof(same)


def _attempt(trials: Trials, trial: Trial, variant: str, fill: int) -> Any:
    guards = Guards(fill)
    inputs = guards.copies(trial.inputs)
    _dirty(trial.wanted, trials.device, fill)
    with guards.taken():
        got = trials.spec.run(*inputs, backend=variant)
    synchronize(trials.device)
    written = guards.written()
    if written is not None:
        raise WrongError(f"{trial.name}: {written}")
    own = {x.untyped_storage().data_ptr() for x in tree_leaves(got) if isinstance(x, Tensor)}
    for index, (now, before) in enumerate(zip(tree_leaves(inputs), tree_leaves(trial.inputs), strict=True)):
        if isinstance(now, Tensor) and now.untyped_storage().data_ptr() not in own and not same_bits(now, before):
            raise WrongError(f"{trial.name}: changed its input {index}")
    return got


def _check(spec: Spec, trial: Trial, got: Any) -> None:
    try:
        spec.check(got, trial.wanted, trial.inputs)
    except AssertionError as error:
        raise WrongError(f"{trial.name}: {str(error).strip().splitlines()[0]}") from None


def _dirty(outputs: Any, device: torch.device, fill: int) -> None:
    """Leave NaN where the allocator will find memory for outputs: what C++ takes is often what was given back last."""
    sizes = [x.numel() * 4 for x in tree_leaves(outputs) if isinstance(x, Tensor)]
    held = [torch.full((size,), fill, dtype=torch.uint8, device=device) for size in sizes]
    del held


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -------------------------------------------------------------------------------------------------------------- leaks

CALLS, LEAST, SECONDS = 16, 1024, 0.5


def _check_leaks(trials: Trials, variant: str) -> None:
    """After sixteen calls, or three of slow ones, no more memory is in use than before, half of their results aside."""
    if held_bytes(trials.device) is None:
        return
    trial = next(iter(trials))
    inputs = Guards(FILLS[0]).copies(trial.inputs)
    before, size, calls = 0, 0, 0
    end = time.monotonic() + SECONDS
    for calls in range(CALLS + 1):
        got = trials.spec.run(*inputs, backend=variant)
        size = sum(x.nbytes for x in tree_leaves(got) if isinstance(x, Tensor))
        del got
        if calls == 0:
            before = _in_use(trials.device)
        elif calls > 2 and time.monotonic() > end:
            break
    most = calls * max(size // 2, LEAST)
    kept = _in_use(trials.device) - before
    if kept > most:  # it may hang in cycles, which take a second to look for
        gc.collect()
        kept = _in_use(trials.device) - before
    if kept > most:
        raise WrongError(f"keeps {kept / calls:,.0f} bytes of memory a call")


def _in_use(device: torch.device) -> int:
    synchronize(device)
    return held_bytes(device) or 0


def held_bytes(device: torch.device) -> int | None:
    """Of memory that is in use: torch's own count on a GPU, that of the C library on a CPU; None where it has none."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    count = _malloc_count()
    return None if count is None else count()


class _Counts(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [(f"field{index}", ctypes.c_size_t) for index in range(10)]

    @property
    def in_use(self) -> int:
        """``hblkhd`` and ``uordblks``: in blocks of their own, and among others."""
        return int(self.field4 + self.field7)


@cache
def _malloc_count() -> Callable[[], int] | None:
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return None
    function.restype = _Counts

    def count() -> int:
        return int(function().in_use)

    return count
