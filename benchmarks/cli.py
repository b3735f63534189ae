"""``hqtvae bench``: the suites, the report and the gate as one group of commands."""

from __future__ import annotations

import typer

from benchmarks.encode import encode
from benchmarks.gate import compare
from benchmarks.generate import generate
from benchmarks.html import report
from benchmarks.ops import ops
from benchmarks.proxies import main as proxies
from benchmarks.train import train

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    help="Measure, report and compare. Needs a checkout of the repository, in which benchmarks/ lies.",
)
app.command()(generate)
app.command()(ops)
app.command()(train)
app.command()(encode)
app.command("proxies")(proxies)
app.command()(compare)
app.command()(report)

if __name__ == "__main__":
    app()
