"""How often the gate finds a planted loss, and how often it cries wolf: measured, on this machine as it is now.

python -m benchmarks.studies.rates --runs 20 --out benchmarks/results/gate-rates-cpu.json

A run is a whole comparison of the same revision with itself, with processes of its own; the side that is compared
takes turns with planted losses of 0, 1, 3 and 10 % (:func:`benchmarks.gate.worker.timed` makes each call longer by that
share), and each gets a verdict by itself. At 0 % every alarm is a false one.

Result: gate_rates.md.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.gate.pairs import Plan, Side, measure
from benchmarks.gate.revisions import checked_out, commit_of
from benchmarks.gate.verdicts import between_sides, judge
from benchmarks.measuring.environment import describe
from benchmarks.measuring.schema import Results, Row, write

PLANTED = (0.0, 0.01, 0.03, 0.10)
STDERR = Console(stderr=True, highlight=False)


def one_run(sides: list[Side], plan: Plan, threshold: float) -> dict[str, Any]:
    """By planted loss: the verdict over all parts (a loss in any is an alarm) and each part's estimate."""
    found = {}
    for side, pair in zip(sides[1:], measure(sides, plan), strict=True):
        verdicts = judge(between_sides(pair), threshold)
        found[f"{side.slow:g}"] = {
            "alarm": any(verdict.is_loss for verdict in verdicts),
            "rows": {v.change.name: {"word": v.word, "p": v.p, **vars(v.change.shift)} for v in verdicts},
        }
    return found


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Markdown: alarms by planted loss, then each part's verdicts and how its estimates spread."""
    lines = [
        "| planted loss | runs | alarms | rate | part | verdicts | estimates: least, median, most |",
        "|--:|--:|--:|--:|---|---|---|",
    ]
    for planted in runs[0]:
        each = [run[planted] for run in runs]
        alarms = sum(one["alarm"] for one in each)
        head = f"| {float(planted):.0%} | {len(each)} | {alarms} | {alarms / len(each):.0%} |"
        for part in each[0]["rows"]:
            lines.append(f"{head} {part.split(': ')[-1]} | {_told([one['rows'][part] for one in each])} |")
            head = "| | | | |"
    return lines


def _told(rows: list[dict[str, Any]]) -> str:
    """Two cells: how often each word was the verdict, and the estimates."""
    words = Counter(row["word"] for row in rows)
    estimates = sorted(row["estimate"] for row in rows)
    spread = ", ".join(f"{x:+.1%}" for x in (estimates[0], estimates[len(estimates) // 2], estimates[-1]))
    return f"{', '.join(f'{word} {number}' for word, number in words.most_common())} | {spread}"


def rows_of(runs: list[dict[str, Any]]) -> Iterator[Row]:
    """The estimated changes, a run each, by planted loss and part."""
    for planted, first in runs[0].items():
        for part in first["rows"]:
            estimates = tuple(run[planted]["rows"][part]["estimate"] for run in runs)
            alarms = sum(run[planted]["alarm"] for run in runs)
            work = {"planted": float(planted), "alarms": alarms}
            yield Row(f"{part}, planted loss {float(planted):.0%}: estimate", "gate", (estimates,), "share", work=work)


def rates(
    runs: Annotated[int, typer.Option(min=1, help="Whole comparisons.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of processes in each.")] = 12,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each side in a pair of processes.")] = 16,
    part: Annotated[str, typer.Option(help="Only parts of tiny's generation that end so: draw, decode.")] = "",
    threshold: Annotated[float, typer.Option(help="As a share.")] = 0.03,
    revision: Annotated[str, typer.Option(help="What is compared with itself.")] = "HEAD",
    out: Annotated[Path | None, typer.Option(help="Write every verdict there, after each run.")] = None,
) -> None:
    """Compare a revision with itself, with planted losses, and print how many were found."""
    workload = {"suite": "generate", "preset": "tiny", "batch": 2, "device": "cpu", "part": part}
    plan, done = Plan(workload, rounds, turns, least_seconds=0.01), []
    facts = {
        **describe(torch.device("cpu"), "studies.rates"),
        "git_revision": commit_of(revision)[:12],
    }  # HEAD may move on
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        base, new = (stack.enter_context(checked_out(revision, name, Path(folder))) for name in ("base", "new"))
        sides = [Side("base", base), *(Side(f"new, {slow:.0%} slower", new, slow) for slow in PLANTED)]
        for number in range(runs):
            done.append(one_run(sides, plan, threshold))
            words = {share: [row["word"] for row in one["rows"].values()] for share, one in done[-1].items()}
            STDERR.print(f"run {number + 1} of {runs}: {words}", style="dim", markup=False)
            if out is not None:
                details = {"plan": vars(plan), "threshold": threshold, "runs": done}
                write(Results("rates", facts, tuple(rows_of(done)), details), out)
    typer.echo("\n".join(table(done)))


if __name__ == "__main__":
    typer.run(rates)
