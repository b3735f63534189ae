"""Values of a run's fields, as YAML gives them, in the fields' own types and within their bounds."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Literal, get_args, get_origin

from hqtvae_fast.fields import field_kinds, read


def typed_fields(cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` in the types that the dataclass ``cls`` declares; ConfigError naming the field where one is of none.

    YAML 1.1 takes ``4e-5``, without a point, for text and ``no`` for false, and one path is no list of them: all are
    read as they were meant.
    """
    kinds = field_kinds(cls)
    return {name: read(kinds[name], _meant(kinds[name], value), name) for name, value in values.items()}


def _meant(kind: Any, value: Any) -> Any:
    """The value in the type that it was meant in; as it is where that cannot be told."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _meant(arguments[0], value)
    if origin is tuple:
        entries = value if isinstance(value, list | tuple) else (value,)
        return tuple(_meant(arguments[0], entry) for entry in entries)
    if origin is not None and type(None) in arguments and value is not None:  # of one type and None here
        return _meant(next(option for option in arguments if option is not type(None)), value)
    if kind in (int, float) and isinstance(value, str | float):
        return _number(kind, value)
    if (kind is str or origin is Literal) and isinstance(value, bool):
        return "yes" if value else "no"
    return value


def _number(kind: type, value: str | float) -> Any:
    with suppress(ValueError, OverflowError):
        number = float(value)
        return int(number) if kind is int and number == int(number) else number
    return value
