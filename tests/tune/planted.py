"""An op whose variants are wrong, each in its own way: what a parent and its worker must see and outlive."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.spec import Case, Cost, Spec, check_errors

CASES = (Case("usual", {"M": 64, "D": 160}), Case("odd", {"M": 37, "D": 160}))
KEPT: list[Tensor] = []
CALLS = itertools.count()


def sound(x: Tensor, shift: Tensor) -> Tensor:
    return torch.add(x * 2, shift, out=torch.empty_like(x))


def another_way(x: Tensor, shift: Tensor) -> Tensor:
    """As right; other bits."""
    return x * 3 - (x - shift)


def by_a_hair(x: Tensor, shift: Tensor) -> Tensor:
    y = sound(x, shift)
    y[len(y) // 2] *= 1 + 1e-5
    return y


def at_one_shape(x: Tensor, shift: Tensor) -> Tensor:
    return sound(x, shift) if len(x) % 2 == 0 else x * 2


def nan(x: Tensor, shift: Tensor) -> Tensor:
    y = sound(x, shift)
    y[0, -1] = float("nan")
    return y


def unwritten(x: Tensor, shift: Tensor) -> Tensor:
    """Its last row is what was in memory."""
    y = x.new_empty(x.shape)
    y[:-1] = sound(x, shift)[:-1]
    return y


def beyond(x: Tensor, shift: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.copy_(sound(x, shift))
    ctypes.memset(y.data_ptr() + y.nbytes, 0, 4)
    return y


def changes_input(x: Tensor, shift: Tensor) -> Tensor:
    y = sound(x, shift)
    shift[3] += 1
    return y


def other_bits(x: Tensor, shift: Tensor) -> Tensor:
    """Right each time; another value is rounded otherwise each time."""
    y = sound(x, shift)
    y[0, next(CALLS) % 151] *= 1 + 2.4e-7
    return y


def raises(x: Tensor, shift: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available")


def aborts(x: Tensor, shift: Tensor) -> Tensor:
    os.abort()


def segfaults(x: Tensor, shift: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)
    return x


def hangs(x: Tensor, shift: Tensor) -> Tensor:
    time.sleep(3600)
    return x


def leaks(x: Tensor, shift: Tensor) -> Tensor:
    KEPT.append(sound(x, shift))
    return KEPT[-1].clone()


def slow(x: Tensor, shift: Tensor) -> Tensor:
    time.sleep(0.005)
    return sound(x, shift)


def prints(x: Tensor, shift: Tensor) -> Tensor:
    os.write(1, b"compiling ...\n")
    return sound(x, shift)


def _named(*functions: Callable[..., Tensor]) -> tuple[Backend, ...]:
    return tuple(Backend(f"native/{function.__name__}", function, only_by_name=True) for function in functions)


SOUND = ("native", "native/another_way", "native/slow", "native/prints", "reference")
WRONG = {  # and a part of the reason that is to be given
    "native/by_a_hair": "more than the limit",
    "native/at_one_shape": "more than the limit",
    "native/nan": "not finite",
    "native/unwritten": "",
    "native/beyond": "wrote 4 bytes behind an allocation of",
    "native/changes_input": "changed its input 1",
    "native/other_bits": "other bits the second time",
    "native/raises": "raised RuntimeError: no kernel image is available",
    "native/aborts": "killed by SIGABRT",
    "native/segfaults": "killed by SIGSEGV",
    "native/hangs": "did not finish within",
    "native/leaks": "bytes of memory a call",
}
BACKENDS = (
    Backend("native", sound),
    *_named(another_way, slow, prints),
    *_named(by_a_hair, at_one_shape, nan, unwritten, beyond, changes_input, other_bits),
    *_named(raises, aborts, segfaults, hangs, leaks),
    Backend("reference", sound),
)


def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(case["M"], case["D"], generator=generator, dtype=torch.float32)
    shift = torch.randn(case["D"], generator=generator, dtype=torch.float32)
    return x.to(case.dtype).to(device), shift.to(case.dtype).to(device)


def run(x: Tensor, shift: Tensor, *, backend: str | None = None) -> Tensor:
    return choose("planted", BACKENDS, x, shift, backend=backend).backend.run(x, shift)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Tensor, Tensor]) -> None:
    check_errors("sum", got, wanted, sound(*inputs), absolute=1e-6)


SPEC = Spec(
    op="planted",
    cases=CASES,
    small=CASES,
    make_inputs=make_inputs,
    run=run,
    reference=lambda x, shift: sound(x.double(), shift.double()),
    check=check,
    cost=lambda case: Cost(2 * case["M"] * case["D"], 8 * case["M"] * case["D"]),
    backends=BACKENDS,
)


def all_specs() -> dict[str, Spec]:
    return {"planted": SPEC}
