"""What each picture of a large set shows, by its index alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hqtvae_fast.classes import NO_CLASSES, Classes
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.files import json_text


@dataclass(frozen=True)
class Subjects:
    """``total`` pictures of some classes or prompts, or of nothing in particular.

    ``values``: integers, strings, or none. ``in_turn``: picture i shows value i mod their number, so that each part of
    the set holds all of them; else they come one after the other, in equal shares (``total`` is a multiple of their
    number). ``classes``: whose labels the integers are.
    """

    values: tuple[int, ...] | tuple[str, ...]
    total: int
    in_turn: bool = False
    classes: Classes = NO_CLASSES

    def at(self, index: int) -> int | str | None:
        if not self.values:
            return None
        count = len(self.values)
        return self.values[index % count if self.in_turn else index // (self.total // count)]

    def first(self, total: int) -> Subjects | None:
        """The smaller set whose pictures are the first ``total`` of this one; None if there is none such."""
        if self.in_turn or len(self.values) <= 1:
            return replace(self, total=total)
        each = self.total // len(self.values)
        return None if total % each else replace(self, values=self.values[: total // each], total=total)

    def examples(self) -> dict[str, Any]:
        """The pipeline's arguments for one picture of each class or prompt."""
        return Subjects(self.values, len(self.values) or 1).arguments(range(len(self.values) or 1))

    def arguments(self, span: range) -> dict[str, Any]:
        """The pipeline's arguments for the pictures of a span, but for their seeds."""
        if not self.values:
            return {"num_images": len(span)}
        kind = "class_labels" if isinstance(self.values[0], int) else "prompt"
        return {kind: [self.at(index) for index in span]}

    def fields(self, index: int) -> dict[str, Any]:
        """What a data set says of the picture: ``label``, and ``class_name`` if it has one, or ``caption``."""
        value = self.at(index)
        if isinstance(value, int):
            name = self.classes.name(value)
            return {"label": value} if name is None else {"label": value, "class_name": name}
        return {} if value is None else {"caption": value}

    def digest(self) -> str:
        """16 hexadecimal digits, equal for equal subjects."""
        names = [self.classes.name(value) for value in self.values if isinstance(value, int)]
        text = json_text([self.values, self.total, self.in_turn, *([names] if any(names) else [])])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_subjects(config: HQTVAEConfig, labels: Sequence[int], prompts: Sequence[str], num_images: int) -> Subjects:
    """``num_images`` of each class or prompt; of a class-conditional model without either, so many pictures of all
    classes that it was trained on, in turn; of an unconditional one, so many."""
    values: tuple[int, ...] | tuple[str, ...] = tuple(labels) if labels else tuple(prompts)
    if values:
        return Subjects(values, len(values) * num_images, classes=config.classes)
    if trained := tuple(config.classes.trained):
        return Subjects(trained, num_images, in_turn=True, classes=config.classes)
    return Subjects((), num_images)
