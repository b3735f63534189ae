"""A benchmark's command line, for ``python -m``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from hqtvae_fast.cli.many import ManyValues


def run(command: Callable[..., None], arguments: Sequence[str] | None) -> None:
    """A command of its own, for ``python -m``; None: with the process's arguments. SystemExit with 2 on bad ones, and
    with the code that the command ends with."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=ManyValues)(command)
    found = typer.main.get_command(app)
    try:
        code = found.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except typer.BadParameter as error:
        typer.echo(f"error: {error.format_message()}", err=True)
        raise SystemExit(2) from None
    if isinstance(code, int) and code:
        raise SystemExit(code)
