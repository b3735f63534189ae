"""Who would compute an op on given inputs and why, how its kernel would be launched, and what bounds its time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hqtvae_fast.backend import BackendError, Choice, choose
from hqtvae_fast.hardware import Device, floor_seconds, measure_this_machine, published
from hqtvae_fast.ops.spec import Case, Cost, Spec, all_specs


def explain(op_name: str, *inputs: Any, backend: str | None = None, peaks: Device | None = None) -> str:
    """What ``hqtvae_fast.ops.<op_name>(*inputs, backend=backend)`` would do, as lines of text; nothing is run.

    ``inputs`` are those of the op's spec, in its order. The lines: the backend, who asked for it, and those passed over
    with the reason; other variants that could be asked for by name; how the kernel would be launched, where Triton
    computes it and the op tells; the least FLOPs and bytes, where the op's spec gives a cost for these inputs (they
    have the shapes and dtypes of one of its cases), which of the two bounds the time, and the floor. ``peaks``: the
    device's; by default :func:`peaks_of` the device that the inputs are on, which the first time takes 2 seconds where
    nothing is published for it. Raises ValueError on an unknown op.
    """
    specs = all_specs()
    if op_name not in specs:
        raise ValueError(f"op: expected one of {', '.join(sorted(specs))}; got {op_name!r}")
    spec = specs[op_name]
    device = device_of(inputs)
    rows = [("op", f"{op_name}({', '.join(map(_shape, inputs))}) on {device}")]
    choice, told = _choice(spec, inputs, backend)
    rows += told
    launches = device.type == "cuda" if choice is None else choice.backend.base == "triton"
    if spec.describe is not None and launches:
        tile = {} if choice is None or choice.backend.tile is None else {"tile": choice.backend.tile}
        rows += spec.describe(*inputs, **tile).items()
    rows += _cost_rows(spec, inputs, device, peaks)
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def device_of(inputs: Sequence[Any]) -> torch.device:
    """That of the first tensor; the CPU if there is none."""
    return next((tensor.device for tensor in _tensors(inputs)), torch.device("cpu"))


@functools.cache
def peaks_of(device: torch.device) -> Device:
    """The published peaks of a GPU that :mod:`hqtvae_fast.hardware` knows by name; else measured, once a process."""
    if device.type == "cuda":
        with contextlib.suppress(ValueError):  # of a GPU that is not in the table
            return published(torch.cuda.get_device_name(device))
    return measure_this_machine(device)


def cost_of(spec: Spec, inputs: Sequence[Any]) -> tuple[Cost, str] | None:
    """The op's least work on these inputs, and where that is from; None if the spec does not tell."""
    own = getattr(spec, "cost_of", None)  # a spec may know the cost of any inputs
    if own is not None:
        return own(*inputs), "of these inputs"
    wanted = _signature(inputs)
    for case in (*spec.cases, *spec.small):
        if _signature_of_case(spec, case) == wanted:
            return spec.cost(case), f"case {case.name!r}"
    return None


def _signature_of_case(spec: Spec, case: Case) -> Any:
    """Shapes and dtypes of the case's inputs, which are not made: fake tensors hold no memory, nothing is computed."""
    try:
        with FakeTensorMode():
            return _signature(spec.make_inputs(case, torch.device("cpu"), 0))
    except Exception:  # whatever an op's make_inputs does that cannot be done without values: then its cost is unknown
        return None


def _signature(value: Any) -> Any:
    """Shapes and dtypes of tensors, wherever they are; types of anything else, whose values are options of the op."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(_signature(part) for part in value)
    return type(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shape, value))}]"
    return repr(value)


def _choice(spec: Spec, inputs: Sequence[Any], backend: str | None) -> tuple[Choice | None, list[tuple[str, str]]]:
    """Who would compute it, if that is known, and lines about it."""
    if not spec.backends:
        return None, [("backend", "the op's spec lists none")]
    try:
        choice = choose(spec.op, spec.backends, *inputs, backend=backend)
    except BackendError as error:
        return None, [("backend", f"none: {error}")]
    rows = [("backend", f"{choice.backend.name}, chosen by {choice.asked_by}")]
    if choice.backend.origin is not None:
        rows.append(("kernels from", choice.backend.origin()))
    rows += [("passed over", f"{name}: {reason}") for name, reason in choice.passed_over]
    seen = {choice.backend.name, *(name for name, _ in choice.passed_over)}
    others = [each.name for each in spec.backends if each.name not in seen and each.why_not(*inputs) is None]
    return choice, rows + ([("variants", ", ".join(others))] if others else [])


def _cost_rows(spec: Spec, inputs: Sequence[Any], device: torch.device, peaks: Device | None) -> list[tuple[str, str]]:
    found = cost_of(spec, inputs)
    if found is None:
        return [("least work", "unknown: the inputs have the shapes and dtypes of none of the op's cases")]
    cost, source = found
    peaks = peaks or peaks_of(device)
    arithmetic, memory = cost.flops / peaks.flops, cost.bytes / peaks.bandwidth
    limit, other = ("arithmetic", "memory") if arithmetic > memory else ("memory", "arithmetic")
    low, high = sorted((arithmetic, memory))
    times = f", {high / low:.3g} times as long as {other}" if low > 0 else ""
    floor = _seconds(floor_seconds(cost.flops, cost.bytes, peaks))
    dtype = str(peaks.dtype).removeprefix("torch.")
    return [
        ("least work", f"{cost.flops / 1e9:,.4g} GFLOP, {cost.bytes / 1e6:,.4g} MB ({source})"),
        ("limited by", f"{limit}{times}"),
        (
            "time floor",
            f"{floor} on {peaks.name}: {peaks.flops / 1e12:,.4g} TFLOP/s ({dtype}), {peaks.bandwidth / 1e9:,.4g} GB/s",
        ),
    ]


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"
