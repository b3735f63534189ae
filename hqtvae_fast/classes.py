"""The names of a model's classes: by label, or none at all where nobody said them, as in released checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hqtvae_fast.fields import ConfigError, read, shown

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


def names_to_mapping(names: Names) -> dict[str, str]:
    """As JSON has them: from labels as text, without the classes that had no training pictures."""
    return {str(label): name for label, name in enumerate(names) if name is not None}


def names_from_mapping(given: Any, classes: int) -> Names:
    """The inverse, for so many classes. ConfigError on what is no such mapping."""
    named: Mapping[Any, Any] = read(dict, given, "id2label")
    labels = {str(label): label for label in range(classes)}
    names: list[str | None] = [None] * classes
    for label, name in named.items():
        if label not in labels:
            raise ConfigError(f"id2label: expected labels from 0 to {classes - 1}; got {shown(label)}")
        names[labels[label]] = read(str, name, f"id2label.{label}")
    return tuple(names) if named else ()
