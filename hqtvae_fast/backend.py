"""The one rule that picks who computes an operation: the caller, else the environment, else the plan in use
(:mod:`hqtvae_fast.plan`), else the op's order.

``HQTVAE_BACKEND`` names a backend for all ops (``reference``), for single ones (``nearest_code=triton``), or both,
comma-separated; single ones win. A backend that was asked for and cannot run raises :class:`BackendError` with the
reason; only the op's own order passes over one in silence, and :func:`hqtvae_fast.explain` tells. What a plan names
and cannot run is said once, and the op's order goes on. A backend that nobody has measured yet is never in that order:
it runs where it is asked for by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from hqtvae_fast import plan as plans

VARIABLE = "HQTVAE_BACKEND"
NOT_MEASURED = "runs only where it is asked for by name, until it has been measured"


class BackendError(RuntimeError):
    """A backend that was asked for is unknown or cannot run here."""


Source = Literal["ours", "library", "reference"]
_SOURCES: dict[str, Source] = {
    "triton": "ours",
    "cuda": "ours",
    "native": "ours",
    "cpu": "ours",
    "reference": "reference",
}


@dataclass(frozen=True)
class Backend:
    """One implementation of an op. ``run`` and ``why_not`` take the op's inputs; ``why_not`` gives None or a reason.

    ``name``: "triton", or a variant of it, "triton/128x256x64". ``origin`` says where its kernels come from, where they
    may come from several places. ``only_by_name``: left out of the op's own order. ``tile``: what ``run`` and
    ``why_not`` are given as such, of a variant that :func:`with_tiles` made.
    """

    name: str
    run: Callable[..., Any]
    why_not: Callable[..., str | None] = lambda *inputs: None
    origin: Callable[[], str] | None = None
    only_by_name: bool = False
    tile: Any = None

    @property
    def base(self) -> str:
        """The name up to the slash: the file that computes it."""
        return self.name.partition("/")[0]

    @property
    def source(self) -> Source:
        """Who wrote what computes: us, a library, or torch's plainest operators."""
        return source_of(self.name)


def source_of(name: str) -> Source:
    """:attr:`Backend.source` of a backend or variant of this name."""
    return _SOURCES.get(name.partition("/")[0], "library")


def with_tiles(
    name: str,
    run: Callable[..., Any],
    why_not: Callable[..., str | None],
    tiles: Mapping[str, Any],
    origin: Callable[[], str] | None = None,
) -> tuple[Backend, ...]:
    """The backend, which picks a tile by its own rule, then "name/tile" for each of ``tiles``: the same with
    ``tile=`` it, in ``run`` as in ``why_not``, and only where it is asked for by name."""
    variants = [
        Backend(f"{name}/{key}", partial(run, tile=tile), partial(why_not, tile=tile), origin, True, tile)
        for key, tile in tiles.items()
    ]
    return Backend(name, run, why_not, origin), *variants


@dataclass(frozen=True)
class Choice:
    """The backend, who asked for it, and why those before it were passed over."""

    backend: Backend
    asked_by: str
    passed_over: tuple[tuple[str, str], ...] = ()


def choose(op: str, backends: Sequence[Backend], *inputs: Any, backend: str | None = None) -> Choice:
    """``backends``: the op's, best first for the device that the inputs are on; the last one runs anywhere."""
    plans.note(op, inputs)
    name, asked_by = (backend, "the caller") if backend is not None else (asked_for(op), VARIABLE)
    if name is not None:
        found, reason = _find(backends, name, inputs)
        if found is None:
            raise BackendError(f"{op}: {asked_by} asked for backend {name!r}; {reason}")
        if reason is not None:
            raise BackendError(f"{op}: {asked_by} asked for backend {name!r}, which cannot run: {reason}")
        return Choice(found, asked_by)
    plan = plans.current()
    if plan is not None:
        name = plan.variant(op, inputs)
        if name is not None:
            found, reason = _find(backends, name, inputs)
            if found is not None and reason is None:
                return Choice(found, f"the plan ({plan})")
            plan.warn(op, inputs, name, "is unknown" if found is None else f"cannot run: {reason}")
        if plan.kind == "library":  # where a reference stands before a library's call
            backends = sorted(backends, key=lambda candidate: candidate.source == "reference")
    return _first(op, backends, inputs, plan)


def _find(backends: Sequence[Backend], name: str, inputs: tuple[Any, ...]) -> tuple[Backend | None, str | None]:
    """The one of this name, or None; and why it cannot be had, or None."""
    for candidate in backends:
        if candidate.name == name:
            return candidate, candidate.why_not(*inputs)
    return None, f"expected one of {', '.join(candidate.name for candidate in backends)}"


def _first(op: str, backends: Sequence[Backend], inputs: tuple[Any, ...], plan: plans.Plan | None) -> Choice:
    """The first that can run and that the plan does not pass over."""
    passed_over: list[tuple[str, str]] = []
    for candidate in backends:
        if candidate.tile is not None:  # of a backend that was asked already
            continue
        reason = NOT_MEASURED if candidate.only_by_name else None
        if reason is None and plan is not None:
            reason = plan.why_not(op, candidate.name, candidate.source)
        if reason is None:
            reason = candidate.why_not(*inputs)
        if reason is None:
            return Choice(candidate, "the op's order", tuple(passed_over))
        passed_over.append((candidate.name, reason))
    raise BackendError(f"{op}: no backend can run: {'; '.join(f'{name}: {why}' for name, why in passed_over)}")


_unasked: ContextVar[bool] = ContextVar("unasked", default=False)


@contextmanager
def unasked() -> Iterator[None]:
    """The environment's word does not count inside, where operations run for the shapes of their results: what it asks
    for is meant for a device, and need not run on tensors without values."""
    token = _unasked.set(True)
    try:
        yield
    finally:
        _unasked.reset(token)


def asked_for(op: str) -> str | None:
    """The backend that the environment names for an op, or None."""
    everywhere, named = None, os.environ.get(VARIABLE)
    if not named or _unasked.get():  # nearly always, and asked at every call of every operation
        return None
    for part in filter(None, (part.strip() for part in named.split(","))):
        name, _, value = part.rpartition("=")
        if name == op:
            return value
        if not name:
            everywhere = value
    return everywhere
