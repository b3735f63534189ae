"""Options that take several values: ``--preset S M L`` for ``--preset S --preset M --preset L``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from typer.core import TyperCommand


class ManyValues(TyperCommand):
    """A command whose list options take values up to the next option; what is positional goes before them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, spread(args, lists))


def spread(arguments: Sequence[str], lists: Collection[str]) -> list[str]:
    """The same arguments, with the name of a list option before each of its values."""
    found: list[str] = []
    current = ""
    for argument in arguments:
        if argument.startswith("-"):
            current = argument if argument in lists else ""
            found.append(argument)
        else:
            repeated = current and found[-1] != current
            found += [current, argument] if repeated else [argument]
    return found
