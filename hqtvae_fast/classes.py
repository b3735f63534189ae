"""The names of a model's classes: by label, or none at all where nobody said them, as in released checkpoints."""

from __future__ import annotations

import csv
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from hqtvae_fast.fields import ConfigError, read, shown

MAX_RANGE = 1_000_000  # numbers in one range: more is a slip of the finger
SHOWN = 5  # names in a message

Names = tuple[str | None, ...]
"""One entry a class, in the order of labels; None: a class without training pictures. () where there are none."""


def check_names(names: Names, classes: int | None) -> None:
    """ConfigError unless these are names of so many classes; None: of a model that is not drawn from classes."""
    if not names:
        return
    if classes is None:
        raise ConfigError(f"id2label: expected none, as this model is not drawn from classes; got {len(names)}")
    if len(names) != classes:
        raise ConfigError(f"id2label: expected {classes} names, one a class; got {len(names)}")
    for label, name in enumerate(names):
        if name is not None and not name.strip():
            raise ConfigError(f"id2label.{label}: expected a name; got {name!r}")
    if not any(names):
        raise ConfigError("id2label: expected a name of some class; got none")


def fit_names(names: Names, classes: int) -> Names:
    """The names of a set's classes as those of a model of so many or more: the set has no pictures of the others."""
    return (*names, *[None] * (classes - len(names))) if any(names) else ()


def names_to_mapping(names: Names) -> dict[str, str]:
    """As JSON has them: from labels as text, without the classes that had no training pictures."""
    return {str(label): name for label, name in enumerate(names) if name is not None}


def names_from_mapping(given: Any, classes: int) -> Names:
    """The inverse, for so many classes. ConfigError on what is no such mapping."""
    named: Mapping[Any, Any] = read(dict, given, "id2label")
    if not named:
        return ()
    labels = {str(label): label for label in range(classes)}
    names: list[str | None] = [None] * classes
    for label, name in named.items():
        if label not in labels:
            raise ConfigError(f"id2label: expected labels from 0 to {classes - 1}; got {shown(label)}")
        names[labels[label]] = read(str, name, f"id2label.{label}")
    return tuple(names)


class UntrainedClassWarning(UserWarning):
    """A class is asked for that had no training pictures."""


@dataclass(frozen=True)
class Classes:
    """The ``count`` classes of a model (0: it is not drawn from classes), and their names if they have any."""

    count: int
    names: Names = ()

    @property
    def trained(self) -> Sequence[int]:
        """The labels of those that had training pictures, as far as is known."""
        if not self.names:
            return range(self.count)
        return [label for label, name in enumerate(self.names) if name is not None]

    def name(self, label: int) -> str | None:
        """The class's own name; None where it has none, or is none of these."""
        return self.names[label] if 0 <= label < len(self.names) else None

    def caption(self, label: int) -> str:
        """What a picture of the class shows, in words."""
        return self.name(label) or f"class {label}"

    def listed(self, shown: int = SHOWN) -> str:
        """The names of trained classes."""
        return listed((name for name in self.names if name is not None), shown)

    def warn_untrained(self, labels: Iterable[int], stacklevel: int = 1) -> None:
        """Name the classes among ``labels`` that had no training pictures: they are drawn nevertheless."""
        found = sorted({label for label in labels if label < len(self.names) and self.names[label] is None})
        if found:
            more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
            classes = "class" if len(found) == 1 else "classes"
            numbers = ", ".join(map(str, found[:SHOWN]))
            warnings.warn(
                f"{classes} {numbers}{more}: without training pictures, so what is drawn of such a class is not learnt",
                UntrainedClassWarning,
                stacklevel=stacklevel + 1,
            )

    # ------------------------------------------------------------------------------------------------ what users write

    def find(self, option: str, name: str) -> int:
        """The label of the class so named; ValueError, beginning with ``option``, where there is none or several."""
        label = self._labelled(option, name)
        if label is None:
            raise self._unknown(option, name, "the name of a class")
        return label

    def parse(self, option: str, values: Iterable[str]) -> list[int]:
        """``["cat,5-7", "hot dog"]`` -> [0, 5, 6, 7, 1]: names, integers and ranges with both their ends.

        Commas separate, and spaces where what they separate is no name; quotes keep a name with commas together. What
        is a name goes before what is a number; where a class's name is a number, all numbers are names. ValueError,
        beginning with ``option``, on what is neither.
        """
        labels: list[int] = []
        for value in values:
            whole = self._labelled(option, value)
            labels += self._split(option, value) if whole is None else [whole]
        return labels

    def spelled(self, labels: Sequence[int]) -> str:
        """What :meth:`parse` reads as these labels: their names, in quotes where that is needed, or else their numbers.
        There is nothing such of a class without a name of its own where numbers are names."""
        bare, quoted = (",".join(self._spelled(label, quotes) for label in labels) for quotes in ("", '"'))
        return next((text for text in (bare, quoted) if self._reads(text, labels)), ",".join(map(str, labels)))

    def _spelled(self, label: int, quotes: str) -> str:
        name = _plain(self.name(label) or str(label))
        ways = quotes + name + quotes, '"{}"'.format(name.replace('"', '""'))
        return next((text for text in ways if self._reads(f"{text},{text}", (label, label))), str(label))

    def _reads(self, text: str, labels: Sequence[int]) -> bool:
        try:
            return self.parse("", [text]) == list(labels)
        except ValueError:
            return False

    def _split(self, option: str, value: str) -> list[int]:
        try:
            parts = next(csv.reader([value], skipinitialspace=True, strict=True), []) or [""]
        except csv.Error as error:
            raise ValueError(f"{option}: expected names, each in quotes or none; got {value!r} ({error})") from None
        labels: list[int] = []
        for part in (part.strip() for part in parts):
            found = self._one(option, part)
            if found is None and len(words := part.split()) > 1:
                each = [self._one(option, word) for word in words]
                found = None if None in each else [label for one in each for label in one or ()]
            if found is None:
                names = "names of classes, or " if self.names else ""
                raise self._unknown(option, part, f"{names}integers and ranges such as 0,3,5-7")
            labels += found
        return labels

    def _one(self, option: str, text: str) -> Sequence[int] | None:
        """The labels of a name, an integer or a range; None where it is neither."""
        label = self._labelled(option, text)
        if label is not None:
            return [label]
        numbers = read_range(option, text)
        if numbers is None or not self._numbered:
            return numbers
        labels = [self._numbered[number] for number in numbers if number in self._numbered]
        return labels if len(labels) == len(numbers) else None

    def _labelled(self, option: str, name: str) -> int | None:
        labels = self._by_name.get(_plain(name), [])
        if len(labels) > 1:
            raise ValueError(f"{option}: expected one class; got {name!r}, the name of {', '.join(map(str, labels))}")
        return labels[0] if labels else None

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for label, name in enumerate(self.names):
            if name is not None:
                found.setdefault(_plain(name), []).append(label)
        return found

    @cached_property
    def _numbered(self) -> dict[int, int]:
        """Labels of the classes whose names are numbers."""
        return {int(name): labels[0] for name, labels in self._by_name.items() if re.fullmatch("[0-9]{1,18}", name)}

    def _unknown(self, option: str, got: str, wanted: str) -> ValueError:
        if not self.names:
            unnamed = ", as the classes of this model have no names" if self.count else ""
            return ValueError(f"{option}: expected {wanted}{unnamed}; got {got!r}")
        folded = {name.casefold(): name for name in self.names if name is not None}
        close = [repr(folded[match]) for match in get_close_matches(got.casefold(), folded, SHOWN)]
        there = f"; close to it: {', '.join(close)}" if close else f"; there are {self.listed()}"
        return ValueError(f"{option}: expected {wanted}; got {got!r}{there}")


NO_CLASSES = Classes(0)


def listed(names: Iterable[str], shown: int = SHOWN) -> str:
    """The first of them and how many more there are; in quotes those with a comma."""
    quoted = [f'"{name}"' if "," in name else name for name in names]
    return ", ".join(quoted[:shown]) + (f" and {len(quoted) - shown:,} more" if len(quoted) > shown else "")


def read_range(option: str, text: str) -> range | None:
    """``5-7`` -> 5, 6, 7, and ``5`` -> 5; None of other text. ValueError, beginning with ``option``, on a range that
    runs backwards or is endless."""
    match = re.fullmatch("([0-9]+)(?:-([0-9]+))?", text)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < first + MAX_RANGE:
        raise ValueError(f"{option}: expected a range from a smaller to a larger number; got {text!r}")
    return range(first, last + 1)


def _plain(name: str) -> str:
    """Equal for names that look equal: file systems write one letter in several ways."""
    return unicodedata.normalize("NFC", name).strip()
