"""Values of a run's fields, as YAML gives them, in the fields' own types."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hqtvae_fast.config import ConfigError


def typed_fields(cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` in the types that the dataclass ``cls`` declares; ConfigError naming the field where one is of none.

    YAML 1.1 takes ``4e-5``, without a point, for text and ``no`` for false: both are read as they were meant.
    """
    hints = get_type_hints(cls)
    return {name: _typed(name, value, hints[name]) for name, value in values.items()}


def _typed(name: str, value: Any, kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # always of one type and None here
        if value is None:
            return None
        return _typed(name, value, next(option for option in arguments if option is not type(None)))
    if origin is tuple:
        entries = value if isinstance(value, list | tuple) else (value,)
        return tuple(_typed(name, entry, arguments[0]) for entry in entries)
    plain = dict if origin is dict else str if origin is Literal else kind
    try:
        return _READERS[plain](value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: expected {_NAMES[plain]}; got {value!r}") from None


def _integer(value: Any) -> int:
    if isinstance(value, bool) or float(value) != int(float(value)):
        raise TypeError
    return int(float(value))


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str):
        raise TypeError
    return value


def _exactly(kind: type) -> Any:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return read


_READERS: dict[Any, Any] = {
    int: _integer,
    float: _number,
    str: _text,
    bool: _exactly(bool),
    dict: _exactly(dict),
}
_NAMES = {
    int: "an integer",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "a mapping of names to values",
}
