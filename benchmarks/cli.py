"""``hqtvae bench``: the suites, the report and the gate as one group of commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from benchmarks.gate.compare import compare
from benchmarks.gate.proxies import main as proxies
from benchmarks.options import ManyValues
from benchmarks.report.html import report
from benchmarks.studies.launches import launches
from benchmarks.studies.precision import precision
from benchmarks.suites.encode import encode
from benchmarks.suites.generate import generate
from benchmarks.suites.ops import ops
from benchmarks.suites.steps import steps
from benchmarks.suites.train import train

app = typer.Typer(
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
    narrow: Annotated[bool, typer.Option("--precision", help="The same as the command precision demo.")] = False,
) -> None:
    if count:
        launches()
    if narrow:
        precision("demo")


def _add(command: Callable[..., None], name: str, example: str, **how: Any) -> None:
    app.command(name, epilog=f"Example: hqtvae bench {name} {example}", **how)(command)


_add(precision, "precision", "demo --dtype fp32 bf16", cls=ManyValues)
_add(steps, "steps", "--preset S --batch 1 --options tables skip_query", cls=ManyValues)
_add(launches, "launches", "--preset S")
_add(generate, "generate", "--preset S M L --batches 1 8 50 --device cuda --json out.json", cls=ManyValues)
_add(ops, "ops", "--all --device cuda --json ops.json")
_add(train, "train", "--stage 2 --preset S --device cuda --batch 32 --precision bf16")
_add(encode, "encode", "--preset S --device cuda --batch 64")
_add(proxies, "proxies", "--json proxies.json")
_add(compare, "compare", "main . --preset tiny")
_add(report, "report", "benchmarks/results/*.json --out report/")

if __name__ == "__main__":
    app()
