"""How help looks, whatever module a command comes from."""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer


def command_of(app: typer.Typer) -> Any:
    """The commands of ``app``, as Click has them, with help in this program's style."""
    return _styled(typer.main.get_command(app))


def _styled(command: Any) -> Any:
    """Paragraphs flow, flags and arguments bear no type, in this command and those below it."""
    command.help = flowing(command.help)
    params = command.get_params
    command.get_params = lambda context: [_without_type(param, context) for param in params(context)]
    for inner in getattr(command, "commands", {}).values():
        _styled(inner)
    return command


def flowing(text: str | None) -> str | None:
    """A docstring's paragraphs, each on one line: the terminal breaks lines."""
    if text is None:
        return None
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _without_type(param: Any, context: Any) -> Any:
    if getattr(param, "is_flag", False):
        param.metavar = ""  # not <bool>: a flag takes no value
    elif param.param_type_name == "argument":
        param.display_type_rich = lambda ctx: None  # its name says it
    elif param.metavar is None and _is_number(param, context):
        param.metavar = "N"  # its range is said beside it
    return param


def _is_number(param: Any, context: Any) -> bool:
    display = getattr(param, "display_type", None)  # which older releases of Typer lack
    return display is not None and re.match(r"<(list\[)?(int|float)( range)?\]?>", str(display(context))) is not None
