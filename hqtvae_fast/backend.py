"""The one rule that picks who computes an operation: explicit argument, else environment variable, else the op's order.

``HQTVAE_BACKEND`` names a backend for all ops (``reference``), for single ones (``nearest_code=triton``), or both,
comma-separated; single ones win. A backend that was asked for and cannot run raises :class:`BackendError` with the
reason; only the op's own order passes over one in silence, and :func:`hqtvae_fast.explain` tells. A backend that nobody
has measured yet is never in that order: it runs where it is asked for by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

VARIABLE = "HQTVAE_BACKEND"
NOT_MEASURED = "runs only where it is asked for by name, until it has been measured"
Source = Literal["ours", "library", "reference"]
OURS = ("triton", "cuda", "native", "cpu")  # whose kernels are in this repository; others call a library's


class BackendError(RuntimeError):
    """A backend that was asked for is unknown or cannot run here."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an op. ``run`` and ``why_not`` take the op's inputs; ``why_not`` gives None or a reason.

    ``name``: "triton", or a variant of it, "triton/128x256x64".
    ``origin`` says where its kernels come from, where they may come from several places. ``only_by_name``: left out of
    the op's own order.
    """

    name: str
    run: Callable[..., Any]
    why_not: Callable[..., str | None] = lambda *inputs: None
    origin: Callable[[], str] | None = None
    only_by_name: bool = False

    @property
    def base(self) -> str:
        """The name up to the slash: the file that computes it."""
        return self.name.partition("/")[0]

    @property
    def source(self) -> Source:
        """Whose kernels run: ours, a library's, or those of the definition in plain torch."""
        return "reference" if self.base == "reference" else "ours" if self.base in OURS else "library"


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
        Backend(f"{name}/{key}", partial(run, tile=tile), partial(why_not, tile=tile), origin, only_by_name=True)
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
    name, asked_by = (backend, "the caller") if backend is not None else (asked_for(op), VARIABLE)
    if name is not None:
        found = next((candidate for candidate in backends if candidate.name == name), None)
        if found is None:
            known = ", ".join(candidate.name for candidate in backends)
            raise BackendError(f"{op}: {asked_by} asked for backend {name!r}; expected one of {known}")
        reason = found.why_not(*inputs)
        if reason is not None:
            raise BackendError(f"{op}: {asked_by} asked for backend {name!r}, which cannot run: {reason}")
        return Choice(found, asked_by)
    passed_over: list[tuple[str, str]] = []
    for candidate in backends:
        reason = NOT_MEASURED if candidate.only_by_name else candidate.why_not(*inputs)
        if reason is None:
            return Choice(candidate, "the op's order", tuple(passed_over))
        passed_over.append((candidate.name, reason))
    raise BackendError(f"{op}: no backend can run: {'; '.join(f'{name}: {why}' for name, why in passed_over)}")


def asked_for(op: str) -> str | None:
    """The backend that the environment names for an op, or None."""
    everywhere, named = None, os.environ.get(VARIABLE)
    if not named:  # nearly always, and asked at every call of every operation
        return None
    for part in filter(None, (part.strip() for part in named.split(","))):
        name, _, value = part.rpartition("=")
        if name == op:
            return value
        if not name:
            everywhere = value
    return everywhere
