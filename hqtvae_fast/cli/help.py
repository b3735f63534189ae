"""How help looks, whatever module a command comes from."""

from __future__ import annotations

import inspect
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
    elif param.metavar is None and hasattr(param, "display_type"):  # releases of Typer differ in how they say it
        if str(param.display_type(context)).startswith(("<int", "<float")):
            param.metavar = "N"  # its range is said beside it
    return param
