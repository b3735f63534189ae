"""``hqtvae bench``: handed on to ``benchmarks/``, which is in the repository but no part of an installed package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from hqtvae_fast.cli.help import command_of
from hqtvae_fast.cli.output import waiting

ROOT = Path(__file__).parents[2]
PACKAGE = "benchmarks"
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def bench(context: typer.Context) -> None:
    """Measure speed, report it, and compare revisions (needs a checkout of the repository)."""
    with _extras_named():
        with waiting("Starting"):
            group = command_of(load())
        # Errors and exit codes are this program's, so the inner group must not end the process by itself.
        arguments = context.args or ["--help"]
        code = group.main(args=arguments, prog_name=context.command_path, standalone_mode=False)
    if isinstance(code, int) and code:
        raise typer.Exit(code)


def load() -> typer.Typer:
    """The group of commands. ValueError where the package does not lie in a checkout."""
    if not (ROOT / PACKAGE / "cli.py").is_file():
        raise ValueError(
            f"bench: expected a checkout of the repository with {PACKAGE}/; {ROOT} has none, for an installed package"
            " comes without it. `git clone` the repository, `pip install -e '.[bench]'` there, and run hqtvae again"
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"{PACKAGE}.cli").app


@contextmanager
def _extras_named() -> Iterator[None]:
    """What a command imports may belong to an extra: ValueError with how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == PACKAGE:
            raise
        raise ValueError(f"bench: {error.name} is not installed; `pip install -e '.[bench]'` installs it") from None
