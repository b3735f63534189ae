"""A part of a source: the pictures whose fields have certain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from hqtvae_fast.train.data.coded import CodedPictures
from hqtvae_fast.train.data.packed import fingerprint
from hqtvae_fast.train.data.sources import ClassFolder, Source

_MANY_PICTURES = 50_000  # from here on reading all fields shows a progress bar


class Selection:
    """The pictures of ``source``, which may be a part of a set too, at ``indices`` int64; itself a source."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray) -> None:
        self.source, self.indices = source, np.array(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self.source.key(int(self.indices[index]))

    def picture(self, index: int) -> bytes:
        return self.source.picture(int(self.indices[index]))

    def fields(self, index: int) -> dict[str, Any]:
        return self.source.fields(int(self.indices[index]))

    def fingerprint(self) -> str:
        return fingerprint(self.source.fingerprint().encode(), self.indices.tobytes())


def select(source: Source, wanted: Mapping[str, Sequence[Any]]) -> Source:
    """The pictures each of whose fields named in ``wanted`` has one of the values given; a list has one if it holds it.

    The source itself if nothing is wanted. A picture whose fields cannot be read is left out. ValueError if none is
    left, with the values that there are.
    """
    if not wanted:
        return source
    found = [index for index in indices(source, "selecting pictures") if _fits(source, index, wanted)]
    if not found:
        got = _present(source, wanted)
        raise ValueError(f"select: expected pictures with {_spelled(wanted)}; got none, with {got}")
    return Selection(source, found)


def indices(source: Source, doing: str) -> Iterable[int]:
    """Of all pictures; with a bar that says what is done to them, where they are many."""
    console = Console(stderr=True)
    return track(range(len(source)), doing, transient=True, console=console, disable=len(source) < _MANY_PICTURES)


def whole_of(source: Source) -> Source:
    """The source that a selection is of, or a selection of a selection."""
    return whole_of(source.source) if isinstance(source, Selection) else source


def class_names(source: Source) -> tuple[str, ...] | None:
    """The names of the classes that the source's labels number, or None where it has none (as class folders have)."""
    whole = whole_of(source)
    return whole.class_names if isinstance(whole, (ClassFolder, CodedPictures)) else None


def _fits(source: Source, index: int, wanted: Mapping[str, Sequence[Any]]) -> bool:
    try:
        fields = source.fields(index)
    except (ValueError, OSError):
        return False
    return all(any(value in values for value in _values(fields, name)) for name, values in wanted.items())


def _values(fields: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = fields.get(name)
    return value if isinstance(value, list) else [value]


def _spelled(wanted: Mapping[str, Sequence[Any]]) -> str:
    return " and ".join(f"{name} in {', '.join(map(repr, values))}" for name, values in wanted.items())


def _present(source: Source, wanted: Mapping[str, Sequence[Any]]) -> str:
    """Some of the values that the first pictures have in the fields wanted."""
    there = {name: dict[str, None]() for name in wanted}
    for index in range(min(len(source), 1000)):
        try:
            fields = source.fields(index)
        except (ValueError, OSError):
            continue
        for name, seen in there.items():
            seen.update(dict.fromkeys(repr(value) for value in _values(fields, name)))
    return "; ".join(f"{name}: {', '.join(list(seen)[:12])}" for name, seen in there.items())
