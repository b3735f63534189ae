"""A plan: which backend or variant computes which operation here, as data that was measured on this device.

:func:`hqtvae_fast.backend.choose` asks the plan that is in use, after the caller and the environment and before an
op's own order. A plan's choices hold for a site, an op at exact shapes, dtypes and layouts; what has no choice goes by
the op's order, less what the plan has refused.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

Kind = Literal["reference", "library", "default", "tuned"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_KNOWN = 4096
"""Of sites whose answer a plan remembers."""
NOT_VERIFIED = "not verified on this machine"

_DTYPES = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "int64": "i64",
    "int32": "i32",
    "int8": "i8",
    "uint8": "u8",
}


def site(op: str, inputs: Sequence[Any]) -> str:
    """A call of ``op`` as text, readable and exact: ``"skinny_linear | bf16[1,1,1536] bf16[4608,1536] - none False"``.

    Tensors are dtype and shape, with ``nhwc`` (channels-last) or ``strided`` where they are not contiguous; None is
    ``-``; strings and numbers are themselves; lists stand in brackets; of anything else its type's name.
    """
    return " ".join((op, "|", *map(_text, inputs)))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"({' '.join(map(_text, value))})"
    if hasattr(value, "stride"):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{_DTYPES.get(dtype, dtype)}[{','.join(map(str, value.shape))}]{_layout(value)}"
    return type(value).__name__


def _layout(tensor: Any) -> str:
    if tensor.is_contiguous():
        return ""
    return "nhwc" if tensor.ndim == 4 and tensor.permute(0, 2, 3, 1).is_contiguous() else "strided"


_PLAIN = frozenset({type(None), str, int, float, bool})


def _key(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """What :func:`site` depends on, to be hashed: made at every call, where the text is made once. (An argument is
    always a number or always a bool, or the two would be one here.)"""
    return tuple([value if type(value) in _PLAIN else _part(value) for value in inputs])


def _part(value: Any) -> Any:
    if hasattr(value, "stride"):
        return value.shape, value.dtype, value.stride()
    return _key(value) if isinstance(value, (list, tuple)) else type(value)


@dataclass(frozen=True)
class Plan:
    """``choices``: the name of a backend or variant by :func:`site`. ``engine``: how the engine runs, by batch bucket,
    as text that :meth:`hqtvae_fast.engine.options.EngineOptions.read` reads. ``refused``: the reason by "op name":
    never taken from an op's order. ``verified``: "op name"; what is ours and not among them is passed over; None:
    everything is trusted. Of the kind "library" or "reference": library calls alone, or references alone.

    ``batches``: the sizes that batches are computed with, ascending; none: ``BUCKETS`` of
    :mod:`hqtvae_fast.config`. ``best``: images at once where nobody says how many; None: the device's default."""

    kind: Kind = "default"
    choices: Mapping[str, str] = field(default_factory=dict)
    engine: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    verified: frozenset[str] | None = None
    batches: tuple[int, ...] = ()
    best: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"plan: expected one of {', '.join(KINDS)}; got {self.kind!r}")
        sizes = list(self.batches)
        if not all(_is_size(size) for size in sizes) or sizes != sorted(set(sizes)):
            raise ValueError(f"batches: expected ascending sizes from 1 on; got {sizes}")
        if self.best is not None and not _is_size(self.best):
            raise ValueError(f"best: expected a batch size from 1 on, or none; got {self.best!r}")

    @cached_property
    def id(self) -> str:
        """A short hash of all it says: what was computed under equal ones was computed alike."""
        verified = None if self.verified is None else sorted(self.verified)
        parts = [self.kind, dict(self.choices), {str(size): text for size, text in self.engine.items()}]
        text = json.dumps([*parts, dict(self.refused), verified, list(self.batches), self.best], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    def variant(self, op: str, inputs: Sequence[Any]) -> str | None:
        """The choice for this call, or None."""
        if op not in self._ops:
            return None
        key = op, _key(inputs)
        known = self._known
        if key not in known:
            if len(known) >= MOST_KNOWN:
                known.clear()
            known[key] = self.choices.get(site(op, inputs))
        return known[key]

    def why_not(self, op: str, name: str, source: str) -> str | None:
        """Why the op's order passes over a backend under this plan, or None."""
        if self.kind == "reference" and source != "reference":
            return "the plan is to compute by references alone"
        if self.kind == "library" and source == "ours":
            return "the plan is to compute by libraries alone"
        refused = self.refused.get(f"{op} {name}") if self.refused else None
        if refused is not None:
            return f"refused by the plan: {refused}"
        if self.verified is not None and source == "ours" and f"{op} {name}" not in self.verified:
            return NOT_VERIFIED
        return None

    def with_engine(self, text: str) -> Plan:
        """The same, with the engine run so at every batch size."""
        return replace(self, engine={1: text})

    def engine_for(self, batch: int) -> str:
        """How the engine runs ``batch`` images: as the smallest bucket that holds them, else as the largest one; ""
        without any."""
        holding = [size for size in self.engine if size >= batch]
        return self.engine[min(holding) if holding else max(self.engine)] if self.engine else ""

    def warn(self, op: str, inputs: Sequence[Any], name: str, reason: str) -> None:
        """Say once of a choice that it could not be followed."""
        where = site(op, inputs)
        if where not in self._warned:
            self._warned.add(where)
            text = f"plan {self}: {where}: expected {name!r}, which {reason}; going by the op's order"
            warnings.warn(text, stacklevel=4)

    @cached_property
    def _ops(self) -> frozenset[str]:
        return frozenset(where.partition(" ")[0] for where in self.choices)

    @cached_property
    def _known(self) -> dict[Any, str | None]:
        return {}

    @cached_property
    def _warned(self) -> set[str]:
        return set()


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


# --------------------------------------------------------------------------------------------------------------- in use

Sites = dict[str, tuple[str, tuple[Any, ...]]]
_current: ContextVar[Plan | None] = ContextVar("plan", default=None)
_record: ContextVar[Sites | None] = ContextVar("record", default=None)


def current() -> Plan | None:
    """The plan in use here; None: every op goes by its own order."""
    return _current.get()


@contextmanager
def using(plan: Plan | None) -> Iterator[None]:
    """Operations inside go by ``plan``; a thread has its own."""
    token = _current.set(plan)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def recording() -> Iterator[Sites]:
    """The choices that are asked for inside: op and inputs by :func:`site`, the first of each."""
    found: Sites = {}
    token = _record.set(found)
    try:
        yield found
    finally:
        _record.reset(token)


@contextmanager
def apart() -> Iterator[None]:
    """Operations inside go by no plan, and nobody is told of them."""
    plan, record = _current.set(None), _record.set(None)
    try:
        yield
    finally:
        _record.reset(record)
        _current.reset(plan)


def note(op: str, inputs: tuple[Any, ...]) -> None:
    """To be told of every choice; kept while somebody is recording."""
    found = _record.get()
    if found is not None:
        found.setdefault(site(op, inputs), (op, inputs))
