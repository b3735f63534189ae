"""What the fields of a configuration may hold: declared as their types, checked in one place.

    @dataclass(frozen=True)
    class Blocks:
        num_heads: Annotated[int, Between(1, 1024)] = 24
        dropout: Annotated[float, Between(0, 1)] = 0.0

        def __post_init__(self) -> None:
            check_fields(self)

Types are strict: an integer is neither 64.0 nor "64" nor true. Numbers are finite. A list becomes a tuple, an integer
where a number is expected becomes one. Errors read ``num_heads: expected an integer from 1 to 1,024; got 3.0``.
"""

from __future__ import annotations

import math
import reprlib
import types
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_PLAIN = {int: "an integer", float: "a number", str: "text", bool: "true or false", dict: "a mapping"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80  # characters
_MANY = {int: "integers", float: "numbers", str: "texts", bool: "true or false", dict: "mappings"}


class ConfigError(ValueError):
    """A configuration that cannot be; the message names the field and says what was expected and what came."""


@dataclass(frozen=True)
class Between:
    """Numbers from ``low`` to ``high``, both allowed; of a tuple: how many entries it has."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"of {self.low:,} or more" if self.high == math.inf else f"from {self.low:,} to {self.high:,}"


def field_kinds(cls: type[Any]) -> dict[str, Any]:
    """The type of each field of a dataclass, with its bounds."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in cls.__dataclass_fields__}


def check_fields(config: Any) -> None:
    """Of a frozen dataclass, from its ``__post_init__``: every field as :func:`read` gives it, or ConfigError."""
    for name, kind in field_kinds(type(config)).items():
        object.__setattr__(config, name, read(kind, getattr(config, name), name))


def read(kind: Any, value: Any, name: str, *, others: bool = False) -> Any:
    """A value as JSON or YAML gives it, in the type ``kind``; ConfigError naming ``name`` where it is of another."""
    if is_dataclass(_inner(kind)) and isinstance(value, dict):
        return parse(_inner(kind), value, name, others=others)
    try:
        return _read(kind, value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: expected {describe(kind)}; got {shown(value)}") from None


def parse(cls: type[T], data: Any, where: str = "", *, others: bool = False) -> T:
    """A dataclass from a mapping, as JSON and YAML give it; ConfigError names the field, from ``where`` on.

    ``others``: a file of another program's, here and in sections: fields that the class does not have are left alone,
    null is a field's default.
    """
    prefix = f"{where}." if where else ""
    kinds = field_kinds(cls)
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'config'}: expected a mapping; got {shown(data)}")
    unknown = sorted(str(name) for name in data if name not in kinds)
    if unknown and not others:
        raise ConfigError(f"{where or 'config'}: unknown field {unknown}; expected some of {sorted(kinds)}")
    given = [name for name in kinds if name in data and not (others and data[name] is None)]
    values = {name: read(kinds[name], data[name], prefix + name, others=others) for name in given}
    try:
        return cls(**values)
    except ConfigError as error:  # of fields that do not go together
        raise ConfigError(f"{prefix}{error}") from None


def describe(kind: Any, names: dict[Any, str] = _PLAIN) -> str:
    """What a value of this type is: "an integer from 1 to 8", "a list of 2 to 4 integers of 1 or more"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated and get_origin(arguments[0]) is tuple:
        return f"a list of {arguments[1].low} to {arguments[1].high} {describe(get_args(arguments[0])[0], _MANY)}"
    if origin is Annotated:
        return f"{describe(arguments[0], names)} {arguments[1]}"
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a list of {describe(arguments[0], _MANY)}"
    if origin in (Union, types.UnionType):
        return " or ".join("none" if option is type(None) else describe(option) for option in arguments)
    return "a mapping" if is_dataclass(kind) else names[origin or kind]


def shown(value: Any) -> str:
    """A value that came, for a message: a tensor or an array by dtype and shape, anything else by its repr, cut."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):  # this file does without torch
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" if value.shape else repr(value.item())
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of thousands of digits
        return type(value).__name__


def _inner(kind: Any) -> Any:
    """``X`` of ``X | None``, else the type itself."""
    options = [option for option in get_args(kind) if option is not type(None)]
    return options[0] if get_origin(kind) in (Union, types.UnionType) and len(options) == 1 else kind


def _read(kind: Any, value: Any) -> Any:
    """The value in its type; TypeError or ValueError where it is none of that type or out of its bounds."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = _read(arguments[0], value)
        if not arguments[1].low <= (len(value) if isinstance(value, tuple) else value) <= arguments[1].high:
            raise ValueError
        return value
    if origin in (Union, types.UnionType):
        return None if value is None and type(None) in arguments else _read(_inner(kind), value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_read(arguments[0], entry) for entry in value)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ValueError
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(min(max(value, -(2**1000)), 2**1000))  # beyond any bound, and a float
    if not isinstance(value, origin or kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    return value
