"""What an op says of itself once, for tests, ahead-of-time compiles, benchmarks and rooflines alike.

``ops/kernels/<op>/spec.py`` defines ``SPEC``; a new op appears in all four by having one.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend
from hqtvae_fast.ops import kernels


@dataclass(frozen=True)
class Case:
    """Sizes that a real model meets (``name`` says which), by the letters of the op's shapes."""

    name: str
    sizes: Mapping[str, int]
    dtype: torch.dtype = torch.float32

    def __getitem__(self, letter: str) -> int:
        return self.sizes[letter]


@dataclass(frozen=True)
class Cost:
    """Least work: floating-point operations (a multiply-add is two), and bytes of memory read or written once."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Variant:
    """One compilation of a Triton kernel: what its launcher may choose on a device of ``arch`` (80, 90).

    ``signature``: Triton's type of each run-time argument, in order ("*fp32", "i32"); ``constants``: the constexpr
    ones; ``aligned``: arguments divisible by 16, as torch's allocations and the models' sizes are.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int
    needs: tuple[str, ...] = ()
    """What the machine code must contain: "mma" (wgmma or mma.sync), "async" (cp.async or bulk copies)."""
    fp_fusion: bool = True
    """Whether a product and a sum may become one fused multiply-add, rounded once."""


@dataclass(frozen=True)
class Spec:
    """``run(*inputs, backend=None)`` is the op; ``reference(*inputs)`` its definition, on the CPU, maybe in float64.

    ``make_inputs(case, device, seed)``: seeded, shaped like a real model's. ``check(got, wanted, inputs)`` raises
    AssertionError beyond the op's tolerance, which it states. ``baselines``: other ways to the same result, by name,
    for benchmarks. ``variants(arch)``: every compilation that the launcher can choose; empty where there is no kernel.
    ``describe(*inputs)``: how the kernel would be launched on them (tile, warps, stages, shared memory), by name.
    ``derive``: makes anew, in place, inputs that follow from the first one, after that was changed.
    ``backends``: those that ``run`` chooses from, best first, tiles and library calls among them: what is not listed is
    neither tested nor timed nor chosen. Their ``why_not`` takes what ``make_inputs`` gives.
    """

    op: str
    cases: tuple[Case, ...]
    small: tuple[Case, ...]
    """Cases for an interpreter: as small as still meet every path, sizes that are no multiples of tiles among them."""
    make_inputs: Callable[[Case, torch.device, int], tuple[Any, ...]]
    run: Callable[..., Any]
    reference: Callable[..., Any]
    check: Callable[[Any, Any, tuple[Any, ...]], None]
    cost: Callable[[Case], Cost]
    variants: Callable[[int], list[Variant]] = lambda arch: []
    baselines: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    describe: Callable[..., Mapping[str, str]] | None = None
    backends: tuple[Backend, ...] = ()
    derive: Callable[..., None] = lambda *inputs: None


def all_specs() -> dict[str, Spec]:
    """Every op's spec, by name."""
    found = {}
    for op in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
        if importlib.util.find_spec(f"{op.name}.spec"):
            spec = importlib.import_module(f"{op.name}.spec").SPEC
            found[spec.op] = spec
    return found


def check_errors(name: str, got: Tensor, exact: Tensor, plain: Tensor, absolute: float) -> None:
    """AssertionError unless the errors against float64 are at most twice those of torch in the same dtype, plus
    ``absolute`` times the largest value. ``plain`` is torch's result; a rounding to its dtype is always allowed."""
    assert got.shape == exact.shape, f"{name}: expected {list(exact.shape)}; got {list(got.shape)}"
    assert got.dtype == plain.dtype, f"{name}: expected {plain.dtype}; got {got.dtype}"
    got, exact, wide = got.cpu().double(), exact.cpu().double(), plain.cpu().double()
    assert bool(got.isfinite().all()), f"{name}: not finite"
    rounding = torch.finfo(plain.dtype).eps * exact.abs() + torch.finfo(plain.dtype).tiny
    limit = rounding + 2 * (wide - exact).abs().max() + absolute * exact.abs().max()
    over = (got - exact).abs() - limit
    assert bool((over <= 0).all()), f"{name}: off by {float(over.max()):.2e} more than the limit"
