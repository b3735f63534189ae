"""Benchmark of single ops: each backend of ours and each baseline of the op's spec, against the device's floor.

python -m benchmarks.suites.ops --all --device cuda --json ops.json
python -m benchmarks.suites.ops --op nearest_code --case "S, bottom, 1 image"
python -m benchmarks.suites.ops --all --small --device cpu
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.measuring.clocks import unfit_by_load
from benchmarks.measuring.environment import describe, peaks_and_load, pick_device
from benchmarks.measuring.figures import of_floor, plain
from benchmarks.measuring.schema import Results, write
from benchmarks.measuring.schema import Row as ResultRow
from benchmarks.suites.op_timing import Outcome, Plan, Row, first_line, measure
from hqtvae_fast.hardware import Device, measure_this_machine
from hqtvae_fast.ops.spec import Case, Spec, all_specs

STDERR = Console(stderr=True, highlight=False)
FILE_WIDTH = 160  # columns of a table that does not go to a terminal

Op = Annotated[list[str] | None, typer.Option("--op", help="Name of an op; may be given several times.")]
All = Annotated[bool, typer.Option("--all", help="Every op that has a spec.")]
DeviceName = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
CaseName = Annotated[str | None, typer.Option("--case", help="Only the case of this name; default: all of each op's.")]
Small = Annotated[bool, typer.Option("--small", help="The specs' small cases: shows that all runs, in seconds.")]
BackendName = Annotated[
    list[str] | None, typer.Option("--backend", help="Of ours, only this one; may be given several times.")
]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs of each; fewer, but 3, where they would take over 5 s.")]
Check = Annotated[bool, typer.Option("--check/--no-check", help="Hold ours to the op's reference before timing.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file, times in seconds.")]


def ops(
    op: Op = None,
    all_ops: All = False,
    device: DeviceName = "cpu",
    case: CaseName = None,
    small: Small = False,
    backend: BackendName = None,
    repeats: Repeats = 20,
    check: Check = True,
    json: Json = None,
) -> None:
    """Time ops by themselves: ours with each backend, and other ways to the same result, in turns.

    The exit code is 1 if a result of ours was wrong or something failed.
    """
    try:
        if json is not None and not json.absolute().parent.is_dir():
            raise ValueError(f"--json: no directory {json.parent}")
        chosen = list(select(all_specs(), op or [], all_ops, case, small))
        target = pick_device(device)
    except ValueError as error:
        STDERR.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
    peaks, load = peaks_and_load(target)
    facts = {**describe(target, "suites.ops"), **load}
    plan = Plan(target, peaks, repeats, tuple(backend or ()), check)
    outcome = run_all(chosen, plan, lambda so_far: json and write(to_results(so_far, plan, facts), json))
    console = Console()
    console.width = console.width if console.is_terminal else FILE_WIDTH
    console.print(to_table(outcome, plan.peaks, facts))
    _say_what_is_missing(outcome)
    if outcome.failures:
        raise typer.Exit(1)


def select(
    specs: dict[str, Spec], names: list[str], everything: bool, case: str | None, small: bool = False
) -> Iterator[tuple[Spec, Case]]:
    """The cases asked for, the small ones by name or if ``small``; a ValueError says what there is."""
    if everything == bool(names):
        raise ValueError("expected either --op NAME or --all")
    unknown = [name for name in names if name not in specs]
    if unknown:
        raise ValueError(f"--op: expected one of {', '.join(sorted(specs))}; got {', '.join(unknown)}")
    picked = [specs[name] for name in (names or sorted(specs, key=lambda name: (_compiles(specs[name]), name)))]
    found = [
        (spec, each)
        for spec in picked
        for each in (*(() if small else spec.cases), *(spec.small if small or case is not None else ()))
        if case in (None, each.name)
    ]
    if not found:
        known = ", ".join(repr(each.name) for spec in picked for each in (*spec.cases, *spec.small))
        raise ValueError(f"--case: expected one of {known}; got {case!r}")
    yield from found


def _compiles(spec: Spec) -> bool:
    """Whether a baseline is compiled anew for each case, longer than all others take: such operations come last."""
    return any("compile" in name for name in spec.baselines)


def run_all(chosen: list[tuple[Spec, Case]], plan: Plan, save: Callable[[Outcome], Any]) -> Outcome:
    """Measure the cases one after the other, saving what there is after each: a GPU's minutes are few. One that fails
    costs its own rows only."""
    outcome = Outcome()
    for spec, case in chosen:
        STDERR.print(f"{spec.op}, {case.name}", style="dim", markup=False)
        try:
            measure(spec, case, plan, outcome)
        except Exception as error:
            outcome.failures.append(f"{spec.op}, {case.name}: {type(error).__name__}: {first_line(error)}")
        save(outcome)
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()
    return outcome


def ordered(rows: list[Row]) -> list[Row]:
    """Those that are faster than ours first, the fastest of them on top; the rest as measured."""
    return sorted(rows, key=lambda row: row.ratio if row.wins else 1.0)


# ------------------------------------------------------------------------------------------------------------- reports


def to_table(outcome: Outcome, peaks: Device, facts: dict[str, Any]) -> Table:
    table = Table(caption=_caption(peaks, facts), caption_justify="left", box=box.SIMPLE_HEAD)
    for name in ("op", "case", "what"):
        table.add_column(name)
    for name in ("median, ms", "min, ms", "GB/s", "TFLOP/s", "of the floor", "/ ours"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in ordered(outcome.rows):
        cells = (
            plain(row.median * 1e3),
            plain(min(row.seconds) * 1e3),
            plain(row.cost.bytes / row.median / 1e9),
            plain(row.cost.flops / row.median / 1e12, 3),
            of_floor(row.floor, row.median),
            f"{row.ratio:.2f}x",
        )
        style = "red" if row.wins else None
        table.add_row(Text(row.op), Text(row.case), Text(row.what), *cells, style=style)
    return table


def _caption(peaks: Device, facts: dict[str, Any]) -> Text:
    dtype = str(peaks.dtype).removeprefix("torch.")
    return Text(
        f"Floor: {peaks.name}, {plain(peaks.flops / 1e12)} TFLOP/s ({dtype}), {plain(peaks.bandwidth / 1e9)} GB/s. "
        f"{facts['device']}, {facts['cpus']} CPUs, {facts['threads']} threads, load {facts['load_average']} before; "
        f"torch {facts['torch']}; revision {facts['git_revision'] or 'unknown'}; {facts['date']}"
    )


def _say_what_is_missing(outcome: Outcome) -> None:
    for note in gathered(outcome.notes):
        STDERR.print(note, style="yellow", markup=False, soft_wrap=True)
    for line in outcome.unchecked:
        STDERR.print(f"not checked: {line}", style="yellow", markup=False, soft_wrap=True)
    for line in outcome.failures:
        STDERR.print(f"failed: {line}", style="red", markup=False, soft_wrap=True)


def gathered(notes: Sequence[str]) -> list[str]:
    """Notes that differ in the case only, ``left out: OP, CASE: why``, as one."""
    cases: dict[str, list[str]] = {}
    for note in notes:
        parts = note.split(": ", 2)
        key = ": ".join((parts[0], parts[1].partition(",")[0], *parts[2:])) if len(parts) == 3 else note
        cases.setdefault(key, []).append(note)
    return [found[0] if len(found) == 1 else f"{key} ({len(found)} cases)" for key, found in cases.items()]


def to_results(outcome: Outcome, plan: Plan, facts: dict[str, Any]) -> Results:
    """Everything measured and everything it depends on; times in seconds, rates per second."""
    peaks = plan.peaks
    # A known GPU's floors are those of its published peaks; what this one reaches today stands beside them.
    measured = _reached(plan.device) if plan.device.type == "cuda" else peaks
    details = {
        "peaks": _as_json(peaks),
        "measured_peaks": _as_json(measured),
        "notes": outcome.notes,
        "not_checked": outcome.unchecked,
        "failures": outcome.failures,
        "cpus_busy_elsewhere": outcome.busy_elsewhere,
    }
    return Results("ops", facts, tuple(_row(row, outcome) for row in ordered(outcome.rows)), details)


_reached = functools.cache(measure_this_machine)  # once a run, though its results are written after every case


def _as_json(peaks: Device) -> dict[str, Any]:
    return {**vars(peaks), "dtype": str(peaks.dtype).removeprefix("torch.")}


def _row(row: Row, outcome: Outcome) -> ResultRow:
    name = f"{row.op}, {row.case}"
    return ResultRow(
        name=name,
        entrant=row.what,
        samples=(tuple(row.seconds),),
        ours=row.ours,
        work={
            "op": row.op,
            "case": row.case,
            "flops": row.cost.flops,
            "bytes": row.cost.bytes,
            "floor_seconds": row.floor,
            "times_longer_than_ours": row.ratio,
        },
        clocks=outcome.clocks.get(name),
        unfit=outcome.unfit.get(name) or unfit_by_load(outcome.busy_elsewhere.get(name)),
    )


if __name__ == "__main__":
    typer.run(ops)
