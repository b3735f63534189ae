"""``hqtvae bench compare BASE NEW``: has something become slower?

Between two git revisions both are built in worktrees and timed in turn: the mode to trust. Between two results files,
or a file and a folder of stored baselines, nothing runs. The exit code is 1 on a significant loss.

hqtvae bench compare main . --preset tiny
hqtvae bench compare v0.1.0 HEAD --suite ops --op nearest_code --device cuda
hqtvae bench compare benchmarks/results new.json
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.gate import proxies
from benchmarks.gate.pairs import Paired, Plan, Side, measure
from benchmarks.gate.revisions import checked_out, commit_of, is_revision, terminated_tidily
from benchmarks.gate.verdicts import (
    Verdict,
    between_files,
    between_sides,
    judge,
    missing,
    rounds_needed,
    stored_baseline,
    to_markdown,
)
from benchmarks.measuring.schema import Results, Row, read, write
from hqtvae_fast.ops.spec import all_specs

STDERR = Console(stderr=True, highlight=False)
LOST = 1  # the exit code of a significant loss


class Suite(str, Enum):
    """What is compared between revisions."""

    generate = "generate"
    ops = "ops"
    proxies = "proxies"


class Clock(str, Enum):
    """What a CPU's times are."""

    cpu = "cpu"
    wall = "wall"


Base = Annotated[str, typer.Argument(help="A git revision, a results file, or a folder of stored results.")]
New = Annotated[str, typer.Argument(help='A git revision ("." is the working tree) or a results file.')]
Threshold = Annotated[str, typer.Option(help="The loss that must not pass, such as 3% or 0.03.")]
SuiteOption = Annotated[Suite, typer.Option("--suite", help="Of revisions: what is compared.")]
Preset = Annotated[str, typer.Option(help="Of revisions: the model that generates.")]
Batch = Annotated[int, typer.Option(min=1, help="Of revisions: images at once.")]
Device = Annotated[str, typer.Option(help="Of revisions: cpu, cuda or cuda:N.")]
Ops = Annotated[list[str] | None, typer.Option("--op", help="Of revisions, --suite ops: only these; default: all.")]
Small = Annotated[bool, typer.Option("--small", help="Of revisions, --suite ops: the small cases, for a CPU.")]
Rounds = Annotated[int, typer.Option(min=1, help="Pairs of processes; more where so many rows need more.")]
Turns = Annotated[int, typer.Option(min=1, help="Turns of each side in a pair of processes.")]
ClockOption = Annotated[
    Clock, typer.Option("--clock", help="On a CPU: the process's own CPU time, or the time that passes.")
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of each side. More than one: --clock wall.")]
Kernels = Annotated[bool, typer.Option(help="Of revisions, --suite proxies: compile the GPU kernels, for minutes.")]
Markdown = Annotated[Path | None, typer.Option(help="Append the summary to this file too.")]
Json = Annotated[Path | None, typer.Option("--json", help="Of revisions: write NEW's and BASE's times there.")]


def compare(
    base: Base,
    new: New,
    threshold: Threshold = "3%",
    suite: SuiteOption = Suite.generate,
    preset: Preset = "tiny",
    batch: Batch = 2,
    device: Device = "cpu",
    op: Ops = None,
    small: Small = False,
    rounds: Rounds = 12,
    turns: Turns = 16,
    clock: ClockOption = Clock.cpu,
    threads: Threads = 1,
    kernels: Kernels = True,
    markdown: Markdown = None,
    json: Json = None,
) -> None:
    """Say which rows became slower from BASE to NEW; exit code 1 if one did."""
    loss = parse_share(threshold)
    if Path(new).is_file():
        verdicts, text = _stored(Path(base), Path(new), loss)
    else:
        for name in (base, new):
            if not is_revision(name):
                raise ValueError(f"{name}: expected a git revision or a results file; got neither")
        if suite is Suite.proxies:
            with terminated_tidily():
                verdicts, text = _proxies(base, new, loss, kernels, json)
        else:
            if clock is Clock.cpu and threads > 1:
                raise ValueError("--clock cpu: expected --threads 1, for threads that wait burn CPU time too")
            workload: dict[str, Any] = {"suite": suite.value, "device": device, "clock": clock.value}
            workload |= {"threads": threads}
            workload |= {"preset": preset, "batch": batch} if suite is Suite.generate else {"cases": cases(op, small)}
            with terminated_tidily():
                verdicts, text = _revisions(base, new, loss, Plan(workload, rounds, turns), json)
    typer.echo(text, nl=False)
    if markdown is not None:
        with markdown.open("a", encoding="utf-8") as file:
            file.write(text)
    if any(verdict.is_loss for verdict in verdicts):
        raise typer.Exit(LOST)


def parse_share(text: str) -> float:
    """``3%`` or ``0.03``; ValueError unless it is above 0 and below 1."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if number != text.strip() else 1)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise ValueError(f"--threshold: expected a share such as 3% or 0.03; got {text!r}")
    return share


def cases(ops: list[str] | None, small: bool) -> list[list[str]]:
    """``[op, case]`` of the ops asked for."""
    specs = all_specs()
    unknown = sorted(set(ops or ()) - set(specs))
    if unknown:
        raise ValueError(f"--op: expected some of {', '.join(specs)}; got {', '.join(unknown)}")
    picked = [specs[name] for name in (ops or specs)]
    return [[spec.op, case.name] for spec in picked for case in (spec.small if small else spec.cases)]


def _stored(base: Path, new: Path, loss: float) -> tuple[list[Verdict], str]:
    """Two files; BASE may be a folder, of which the newest file of the same suite and device counts."""
    later = read(new)
    file = stored_baseline(base, later) if base.is_dir() else base
    earlier = read(file)
    verdicts = judge(between_files(earlier, later), loss)
    env = later.environment
    notes = [
        f"{later.benchmark} on {later.machine}; {file.name} of {earlier.environment['date']}"
        f" ({earlier.environment['git_revision']}) and {new.name} of {env['date']} ({env['git_revision']})",
        *missing(earlier, later),
    ]
    if any(verdict.change.shift is not None and verdict.change.unit == "s" for verdict in verdicts):
        notes.append("taken at different times: what else changed meanwhile is in the difference")
    return verdicts, to_markdown(verdicts, f"{file.name} against {new.name}", loss, notes)


def _revisions(base: str, new: str, loss: float, plan: Plan, json: Path | None) -> tuple[list[Verdict], str]:
    names = [f"{name} ({commit_of(name)[:12]})" for name in (base, new)]
    if plan.workload["suite"] == "ops":
        needed = rounds_needed(len(plan.workload["cases"]))
        plan = Plan(plan.workload, max(plan.rounds, needed), plan.turns, plan.least_seconds)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = [
            Side(label, stack.enter_context(checked_out(revision, label, Path(folder))))
            for label, revision in (("base", base), ("new", new))
        ]
        (paired,) = measure(sides, plan, lambda line: STDERR.print(line, style="dim"))
    verdicts = judge(between_sides(paired), loss)
    if json is not None:
        write(_as_results(paired, plan), json)
    notes = [
        f"{paired.environments[1]['device']}, torch {paired.environments[1]['torch']}, {plan.rounds} pairs of"
        f" processes, {plan.turns} turns each, in turn; times of {_clock(plan)}"
    ]
    return verdicts, to_markdown(verdicts, f"{names[0]} against {names[1]}", loss, notes)


def _clock(plan: Plan) -> str:
    if plan.workload["device"] != "cpu":
        return "the GPU's events"
    return "the process's own CPU time" if plan.workload["clock"] == "cpu" else "the host's clock"


def _as_results(paired: Paired, plan: Plan) -> Results:
    rows = [
        Row(part, name, tuple(tuple(turns) for turns in processes), ours=name == "new", work={"plan": vars(plan)})
        for name, samples in zip(("new", "base"), reversed(paired.samples), strict=True)
        for part, processes in samples.items()
    ]
    return Results("compare", paired.environments[1], tuple(rows))


def _proxies(base: str, new: str, loss: float, kernels: bool, json: Path | None) -> tuple[list[Verdict], str]:
    """What can be counted on any machine, in both revisions."""
    found = []
    for label, revision in (("base", base), ("new", new)):
        STDERR.print(f"proxies of {revision}", style="dim")
        with tempfile.TemporaryDirectory() as folder, checked_out(revision, label, Path(folder)) as overlay:
            found.append(proxies.in_folder(overlay, Path(folder, "proxies.json"), kernels))
    verdicts = judge(between_files(*found), loss)
    if json is not None:
        write(found[1], json)
    names = [f"{name} ({commit_of(name)[:12]})" for name in (base, new)]
    notes = [*missing(*found), *found[1].details.get("notes", ())]
    return verdicts, to_markdown(verdicts, f"Proxies: {names[0]} against {names[1]}", loss, notes)
