"""``hqtvae plan``: the plans that are kept here, what one says, and how it comes to another machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hqtvae_fast.cli.checks import config_of
from hqtvae_fast.cli.options import AcceptFacts, Checkpoint, ComputeIn, Device, DType, Quantization, Quantize
from hqtvae_fast.cli.output import check_file, count, facts, show, table, waiting
from hqtvae_fast.cli.sample_options import Refiner
from hqtvae_fast.plan import Plan
from hqtvae_fast.plan_file import Measured, PlanError, PlanFile, different, plan_path, plans_folder, verified_path

File = Annotated[Path, typer.Argument(metavar="FILE", help="A plan's file.", show_default=False)]
Files = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="A plan's file; without one, all kept here.", show_default=False)
]
Other = Annotated[Path, typer.Argument(metavar="OTHER", help="Another one.", show_default=False)]
Target = Annotated[Path, typer.Argument(metavar="FILE", help="What to write.", show_default=False)]

plan = typer.Typer(no_args_is_help=True, help="Show, compare and move plans: which kernels compute here.")


@plan.command("show", epilog="Example: hqtvae plan show")
def show_plan(file: Files = None) -> None:
    """Say what a plan's file holds: each choice, what there was before, and how much was gained; or list the files that
    are kept here."""
    if file is None:
        _list_kept()
        return
    read = PlanFile.read(file)
    show(facts(f"{read.kind} plan {read.plan.id}", {name: _said(value) for name, value in read.facts.items()}))
    engine = {f"engine, batch {bucket}": own for bucket, own in sorted(read.engine.items())}
    _show_choices({**engine, **read.choices})
    _show_batches(read)
    if read.verified is not None:
        show(_lines("Verified", sorted(read.verified)))
    if read.unreached:
        show(_lines("Not reached, passed over", sorted(read.unreached)))
    if read.refused:
        show(facts("Refused", dict(read.refused)))


@plan.command(epilog="Example: hqtvae plan diff before.json after.json")
def diff(file: File, other: Other) -> None:
    """Say in what two plans differ: facts, choices, batch sizes and refusals."""
    one, two = PlanFile.read(file), PlanFile.read(other)
    rows = table(f"{file} and {other}", "", str(file), str(other))
    for name, _ in different(one.facts, two.facts):
        rows.add_row(name, _said(one.facts.get(name)), _said(two.facts.get(name)))
    for before, after in ((_choices(one), _choices(two)), (one.refused, two.refused)):
        for name, _ in different(before, after):
            rows.add_row(name, _said(before.get(name)), _said(after.get(name)))
    if rows.row_count:
        show(rows)
    else:
        typer.echo(f"{file} and {other} say the same (plan {one.plan.id})")


@plan.command(epilog="Example: hqtvae plan export path/to/checkpoint plan.json")
def export(
    checkpoint: Checkpoint,
    file: Target,
    refiner: Refiner = None,
    device: Device = None,
    dtype: DType = None,
    quantize: Quantize = None,
) -> None:
    """Write the plan that a checkpoint goes by on this machine to a file: what `hqtvae tune` made, else the default."""
    check_file(file)
    found, _ = _facts_here(checkpoint, refiner, device, dtype, quantize)
    kept = next((own for own in (plan_path(found), verified_path(found)) if own.is_file()), None)
    if kept is None and found["multiprocessors"] is not None:
        raise PlanError(
            f"{checkpoint}: expected a plan on this GPU; got none: its first use, or `hqtvae tune`, makes one"
        )
    own = PlanFile.of(Plan("default"), found) if kept is None else PlanFile.read(kept)
    own.write(file)
    typer.echo(f"wrote {file} (the {own.kind} plan {own.plan.id})")


@plan.command("import", epilog="Example: hqtvae plan import path/to/checkpoint plan.json --accept-fact driver")
def import_(
    checkpoint: Checkpoint,
    file: File,
    refiner: Refiner = None,
    device: Device = None,
    dtype: DType = None,
    quantize: Quantize = None,
    accept_fact: AcceptFacts = None,
) -> None:
    """Keep a plan for a checkpoint here, where every command finds it. All of its facts must hold, or be accepted."""
    read = PlanFile.read(file)
    found, sound = _facts_here(checkpoint, refiner, device, dtype, quantize)
    read.check(found, accept_fact or [], file)
    sound(read)
    kept = replace(read, facts=found)
    kept.write(plan_path(found))
    typer.echo(f"wrote {plan_path(found)} (plan {kept.plan.id}, {count(len(kept.choices), 'choice')})")


def _facts_here(
    checkpoint: str,
    refiner: Path | None,
    device: str | None,
    dtype: ComputeIn | None,
    quantize: Quantization | None,
) -> tuple[dict[str, Any], Any]:
    """What a plan must hold under, and what looks at the rest of one."""
    config = config_of(checkpoint, refiner)
    with waiting("Starting"):
        from hqtvae_fast.engine.options import default_precision, read_precision
        from hqtvae_fast.hardware import pick_device
        from hqtvae_fast.planning import facts_of, sound

    picked = pick_device(device)
    precision = default_precision(picked) if dtype is None else read_precision(dtype.value)
    return facts_of(config, picked, precision, None if quantize is None else quantize.value), sound


# --------------------------------------------------------------------------------------------------------- what is said


def _list_kept() -> None:
    folder = plans_folder()
    rows = table(f"Plans in {folder}", "file", "kind", "plan", "device", "dtype", "choices")
    broken = []
    for file in sorted(folder.glob("*.json")):
        try:
            read = PlanFile.read(file)
        except (PlanError, OSError) as error:
            broken.append(str(error))
            continue
        named = [_said(read.facts.get(name)) for name in ("device", "dtype")]
        rows.add_row(file.name, read.kind, read.plan.id, *named, str(len(read.choices) + len(read.engine)))
    if rows.row_count:
        show(rows)
    elif not broken:
        typer.echo(f"no plans in {folder} yet: `hqtvae tune` makes them")
    for line in broken:
        typer.echo(f"warning: {line}", err=True)


def _show_choices(choices: Mapping[str, Measured]) -> None:
    rows = table("Choices", "choice", "variant", "us", "before", "us", "bits", "error of bound")
    for where, own in choices.items():
        bits = {None: "-", True: "same", False: "other"}[own.same_bits]
        error = "-" if own.error is None else f"{own.error:.2g} of {_said(own.bound)}"
        before = "-" if own.incumbent is None else own.incumbent or "by itself"
        times = _time(own.median, own.spread), _time(own.incumbent_median, own.incumbent_spread)
        rows.add_row(where, own.variant or "by itself", times[0], before, times[1], bits, error)
    if rows.row_count:
        show(rows)
    else:
        typer.echo("no choices: every operation goes by its own order")


def _show_batches(file: PlanFile) -> None:
    rows = table("Batches", "images at once", "seconds", "images/s", "")
    for size in sorted({*file.seconds, *file.batches, *([] if file.best is None else [file.best])}):
        taken = file.seconds.get(size)
        times = ("-", "-") if taken is None else (f"{taken:.4g}", f"{size / taken:.4g}")
        kept = not file.batches or size in file.batches
        rows.add_row(str(size), *times, "the fastest" if size == file.best else "" if kept else "not used")
    if rows.row_count:
        show(rows)


def _time(median: float | None, spread: float | None) -> str:
    if median is None:
        return "-"
    return f"{median:.3g}" if spread is None else f"{median:.3g} ±{spread:.2g}"


def _choices(file: PlanFile) -> dict[str, str]:
    engine = {f"engine, batch {bucket}": own.variant for bucket, own in sorted(file.engine.items())}
    batches = {"batches": " ".join(map(str, file.batches))} if file.batches else {}
    best = {} if file.best is None else {"fastest batch": str(file.best)}
    return engine | batches | best | {where: own.variant for where, own in file.choices.items()}


def _lines(title: str, lines: Iterable[str]) -> Any:
    rows = table(title, "")
    rows.show_header = False
    for line in lines:
        rows.add_row(line)
    return rows


def _said(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
