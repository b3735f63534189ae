"""``hqtvae bench``: the suites, the report and the gate as one group of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.encode import encode
from benchmarks.gate import compare
from benchmarks.generate import generate
from benchmarks.html import report
from benchmarks.launches import launches
from benchmarks.ops import ops
from benchmarks.options import ManyValues
from benchmarks.precision import main as precision
from benchmarks.proxies import main as proxies
from benchmarks.steps import main as steps
from benchmarks.train import train

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    invoke_without_command=True,
    help="Measure, report and compare. Needs a checkout of the repository, in which benchmarks/ lies.",
)
# Commands that read their arguments themselves, --help too.
THEIR_OWN = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.callback()
def _shorthands(
    count: Annotated[bool, typer.Option("--launches", help="The same as the command launches, for preset S.")] = False,
    narrow: Annotated[bool, typer.Option("--precision", help="The same as the command precision demo.")] = False,
) -> None:
    if count:
        launches()
    if narrow:
        precision(["demo"])


@app.command("precision", context_settings=THEIR_OWN)
def _precision(context: typer.Context) -> None:
    """What narrower numbers do to a checkpoint's predictions."""
    precision(context.args)


@app.command("steps", context_settings=THEIR_OWN)
def _steps(context: typer.Context) -> None:
    """Steps with and without options: tables of what depends on a code alone, no query in the head's first pass."""
    steps(context.args)


app.command()(launches)
app.command(cls=ManyValues)(generate)
app.command()(ops)
app.command()(train)
app.command()(encode)
app.command("proxies")(proxies)
app.command()(compare)
app.command()(report)

if __name__ == "__main__":
    app()
