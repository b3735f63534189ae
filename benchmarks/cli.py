"""``hqtvae bench``: the suites, the report and the gate as one group of commands.

A command's module, and torch with it, is imported when the command runs or its own help is asked for.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hqtvae_fast.cli.help import command_of
from hqtvae_fast.cli.many import ManyValues

# By name: where its function is, the first sentence of its help, and an example.
COMMANDS = {
    "generate": (
        "suites.generate:generate",
        "Time drawing codes and decoding them, separately and together, for each preset and batch.",
        "--preset S M L --batches 1 8 50 --device cuda --json out.json",
    ),
    "ops": (
        "suites.ops:ops",
        "Time ops by themselves: ours with each backend, and other ways to the same result, in turns.",
        "--all --device cuda --json ops.json",
    ),
    "train": (
        "suites.train:train",
        "Time updates of training.",
        "--stage 2 --preset S --device cuda --batch 32 --precision bf16",
    ),
    "encode": ("suites.encode:encode", "Time pictures to codes.", "--preset S --device cuda --batch 64"),
    "steps": (
        "suites.steps:steps",
        "Time steps with options (tables of what depends on a code alone, ...) and without them.",
        "--preset S --batch 1 --options tables skip_query",
    ),
    "engine": (
        "suites.engine:engine",
        "Time whole batches with the engine run in several ways, or by plans, in turns.",
        "--preset S --batch 50 --what stream --engine overlap=off overlap=priority",
    ),
    "precision": (
        "studies.precision:precision",
        "Show what fewer bits do to a checkpoint's predictions, draws and pictures.",
        "demo --dtype fp32 bf16",
    ),
    "launches": (
        "studies.launches:launches",
        "Count the kernels that a decode step launches on a GPU, before and after fusion.",
        "--preset S",
    ),
    "model": (
        "model.__main__:model",
        "Predict a step's, a decode's and a batch's time on a GPU, kernel by kernel.",
        "--preset S --device h100 --batch 50",
    ),
    "proxies": ("gate.proxies:main", "Count what can be counted without a GPU.", "--json proxies.json"),
    "compare": (
        "gate.compare:compare",
        "Say which rows became slower from BASE to NEW; exit code 1 if one did.",
        "main . --preset tiny",
    ),
    "report": (
        "report.html:report",
        "Make tables, plots and one self-contained HTML page from results files.",
        "benchmarks/results/*.json --out report/",
    ),
}


def function_of(name: str) -> Any:
    """The function behind a command."""
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)


class Deferred(TyperCommand):
    """Stands for a command in the list of commands, and becomes it once it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        assert self.name is not None
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
        epilog = f"Example: hqtvae bench {self.name} {COMMANDS[self.name][2]}"
        cls = TyperCommand if self.name == "compare" else ManyValues  # two words follow compare's options
        app.command(self.name, epilog=epilog, cls=cls)(function_of(self.name))
        return command_of(app).make_context(info_name, args, parent=parent, **extra)


class Group(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: Deferred(name, help=summary) for name, (_, summary, _) in COMMANDS.items()}


app = typer.Typer(
    cls=Group,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    invoke_without_command=True,
    help="Measure, report and compare. Needs a checkout of the repository, in which benchmarks/ lies.",
)


@app.callback()
def _shorthands(
    count: Annotated[bool, typer.Option("--launches", help="The same as the command launches, for preset S.")] = False,
    numbers: Annotated[bool, typer.Option("--precision", help="The same as the command precision demo.")] = False,
) -> None:
    if count:
        function_of("launches")()
    if numbers:
        function_of("precision")("demo")


if __name__ == "__main__":
    app()
