"""``hqtvae tune``: find out which variants are right and fast on this machine, and keep a plan of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hqtvae_fast.cli.options import MACHINE, Device, DType, Quantize, parse_integers
from hqtvae_fast.cli.output import check_folder, count, show, table, waiting

if TYPE_CHECKING:
    import torch

    from hqtvae_fast.engine.options import Precision
    from hqtvae_fast.hardware import Device as Peaks
    from hqtvae_fast.plan import Plan
    from hqtvae_fast.tune.result import Result
    from hqtvae_fast.tune.sites import Site
    from hqtvae_fast.tune.whole import ModelName


class Pretended(str, Enum):
    """A GPU whose published peaks a dry run goes by."""

    a100 = "a100"
    h100 = "h100"


PEAKS = {Pretended.a100: "A100-80GB", Pretended.h100: "H100"}
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[CHECKPOINT]",
        help="Directory of a checkpoint, a Hub name (owner/name), or demo; instead of it, --preset.",
        show_default=False,
    ),
]
PresetName = Annotated[
    str | None, typer.Option("--preset", metavar="NAME", help="A model of the paper, with random weights.")
]
Budget = Annotated[
    float, typer.Option("--budget", metavar="MINUTES", min=0.05, help="How long it may take; the best so far is kept.")
]
KeepBits = Annotated[
    bool, typer.Option("--keep-bits", help="Choose only variants that give the default ones' bits: no code changes.")
]
VerifyOnly = Annotated[
    bool, typer.Option("--verify-only", help="Only find out which variants are right here: the test of a new GPU.")
]
Batches = Annotated[
    list[str] | None,
    typer.Option(
        "--batches",
        metavar="N ...",
        help="Batch sizes to tune for, such as 1 8 or 1,8.",
        show_default="1 and 50, or 8 on a CPU",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only list choices and candidates, and predict how long each stage takes.")
]
Pretend = Annotated[
    Pretended | None,
    typer.Option("--pretend", help="With --dry-run: a GPU that need not be here.", rich_help_panel=MACHINE),
]


def tune(
    checkpoint: Model = None,
    preset: PresetName = None,
    budget: Budget = 10.0,
    batches: Batches = None,
    keep_bits: KeepBits = False,
    verify_only: VerifyOnly = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    device: Device = None,
    pretend: Pretend = None,
    dtype: DType = None,
    quantize: Quantize = None,
) -> None:
    """Prove and time every variant of a model's kernels on this machine, and keep a plan of the fastest.

    A variant is tried in a process of its own: against float64, from several inputs, for the same bits twice, for what
    it does to memory that is not its own. Only what is right is timed, and only what makes whole runs faster is kept.
    From then on every command that draws or decodes with this model goes by the plan. Ctrl-C keeps the best so far.
    """
    if (checkpoint is None) == (preset is None):
        raise ValueError("expected a CHECKPOINT or --preset, one of them")
    if pretend is not None and not dry_run:
        raise ValueError("--pretend: expected --dry-run beside it: a GPU that is not here can be asked nothing")
    wanted = parse_integers("--batches", batches or [])
    if batches and min(wanted, default=0) < 1:
        raise ValueError(f"--batches: expected batch sizes from 1 on; got {' '.join(batches)!r}")
    with waiting("Starting"):
        found, name, precision, peaks = _machine(checkpoint, preset, device, pretend, dtype, quantize)
    if name.config.transformer is None:
        raise ValueError("this checkpoint has stage 1 only: there is nothing to draw")
    sizes = wanted or [1, 8 if found.type == "cpu" else 50]
    if dry_run:
        _say_dry_run(_sites(name, found, sizes)[0], peaks, found.type == "cuda", as_json)
    else:
        _tune(name, found, precision, peaks, sizes, _Asked(60 * budget, keep_bits, verify_only, as_json))


class _Asked:
    def __init__(self, seconds: float, keep_bits: bool, verify_only: bool, as_json: bool) -> None:
        self.seconds, self.keep_bits, self.verify_only, self.as_json = seconds, keep_bits, verify_only, as_json


def _machine(
    checkpoint: str | None, preset: str | None, device: str | None, pretend: Pretended | None, dtype: Any, quantize: Any
) -> tuple[torch.device, ModelName, Precision, Peaks]:
    import torch

    from hqtvae_fast.checkpoint import quantization_of
    from hqtvae_fast.engine.options import check_precision, default_precision, read_precision
    from hqtvae_fast.hardware import pick_device, published
    from hqtvae_fast.ops.explain import peaks_of
    from hqtvae_fast.tune.whole import ModelName

    found = torch.device("cuda") if pretend is not None else pick_device(device)
    stored = None if checkpoint is None else quantization_of(checkpoint)  # a plan is found by what the file is in
    quantized = stored if quantize is None else quantize.value
    if stored not in (None, quantized):
        raise ValueError(f"--quantize: expected {stored}, which this checkpoint's weights are in; got {quantized}")
    if dtype is not None:
        precision = read_precision(dtype.value)
    else:
        precision = read_precision("bf16") if pretend is not None else default_precision(found)
    if pretend is None:
        check_precision(precision, quantized, found)
    asked = dtype.value if dtype is not None else str(precision.dtype).removeprefix("torch.")
    peaks = published(PEAKS[pretend]) if pretend is not None else peaks_of(found)
    return found, ModelName(checkpoint, preset, asked, quantized), precision, peaks


def _sites(
    name: ModelName, device: torch.device, sizes: list[int], refused: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[Site], dict[str, list[Site]]]:
    """The model's choices, those of the engine's words among them that round to 8 bits and may be tried, but for what
    is ``refused``; and those that other words bring. On a GPU from shapes alone."""
    with waiting("Looking for choices"):
        from hqtvae_fast.tune.confirm import EIGHT_BITS, engine_words
        from hqtvae_fast.tune.quality import convolutions_left
        from hqtvae_fast.tune.sites import brought_sites, find_sites, without
        from hqtvae_fast.tune.whole import models_of

        model = name.shapes() if device.type == "cuda" else name.open(device)
        words = {word for kind in engine_words(device.type, refused, eight_bits=name.eight_bits) for word in kind}
        engines = ("", *(word for word in EIGHT_BITS if word in words))
        convolutions = convolutions_left(model.vae, device, refused)
        found = find_sites(models_of(model), model.vae, device, sizes, engines, convolutions)
        return without(found, refused), brought_sites(models_of(model), device, sizes, found)


def _tune(
    name: ModelName, device: torch.device, precision: Precision, peaks: Peaks, sizes: list[int], asked: _Asked
) -> None:
    from hqtvae_fast.plan_file import PlanFile, plan_path, plans_folder, verified_path
    from hqtvae_fast.planning import facts_of, kept_verification
    from hqtvae_fast.tune.lock import tuning
    from hqtvae_fast.tune.report import result_rows

    check_folder(plans_folder())
    with tuning(plans_folder()):
        facts = facts_of(name.config, device, precision, name.quantization)
        known = kept_verification(facts) if device.type == "cuda" else None
        result = _run(name, device, peaks, sizes, asked, None if known is None else known.plan)
        if asked.verify_only:
            path = verified_path(facts)
            if device.type == "cuda":
                replace(PlanFile.of(result.trusting("default"), facts), unreached=result.unreached).write(path)
        else:
            path = plan_path(facts)
            if result_rows(result, peaks) or result.tuning is not None:
                file = PlanFile.of(result.plan, facts)
                found: dict[str, Any] = {"choices": result.choices, "engine": result.engine}
                replace(file, **found, seconds=result.seconds, unreached=result.unreached).write(path)
    _say_result(result, peaks, str(path), asked, written=path.is_file())


def _run(
    name: ModelName, device: torch.device, peaks: Peaks, sizes: list[int], asked: _Asked, known: Plan | None
) -> Result:
    from hqtvae_fast.ops.spec import all_specs
    from hqtvae_fast.tune.confirm import NoRunError
    from hqtvae_fast.tune.jobs import TIME_SECONDS
    from hqtvae_fast.tune.parent import Parent
    from hqtvae_fast.tune.quality import unfit
    from hqtvae_fast.tune.tuner import Tuner
    from hqtvae_fast.tune.whole import packed_name, packed_plan

    start = time.monotonic()
    with waiting("Judging what 8 bits cost"):
        refused = unfit(name, device)
    sites, brought = _sites(name, device, sizes, refused)
    with Parent() as parent:

        def whole(plan: Plan, batch: int) -> float:
            job = {"do": "whole", "model": packed_name(name), "plan": packed_plan(plan), "batch": batch}
            answer = parent.ask({**job, "device": str(device)}, 10 * TIME_SECONDS)
            if answer["status"] != "right":
                raise (MemoryError if answer["status"] == "memory" else NoRunError)(answer["reason"])
            return float(answer["seconds"])

        left = max(1.0, asked.seconds - (time.monotonic() - start))
        options: dict[str, Any] = {"keep_bits": asked.keep_bits, "only_prove": asked.verify_only}
        options |= {"known": known, "refused": refused, "eight_bits": name.eight_bits, "brought": brought}
        tuner = Tuner(sites, all_specs(), device, peaks, parent.ask, parent.fresh, whole, sizes, left, **options)
        with _bar(left) as tuner.on_stage:
            return tuner.run()


STAGES = {
    "prove": "Proving variants",
    "time": "Timing them",
    "confirm": "Confirming by whole runs",
    "batches": "Timing batch sizes",
}


@contextmanager
def _bar(seconds: float) -> Iterator[Callable[[str, int, int], None]]:
    """Of the budget's time, on a terminal; elsewhere a line a stage."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console, start, said = Console(stderr=True), time.monotonic(), set[str]()
    if not console.is_terminal:

        def say(stage: str, done: int, total: int) -> None:
            if stage not in said:
                said.add(stage)
                typer.echo(f"{STAGES[stage]}: {total}", err=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=seconds, left="")

        def update(stage: str, done: int, total: int) -> None:
            passed = time.monotonic() - start
            left = max(0.0, seconds - passed)
            shown = f"at most {int(left) // 60}:{int(left) % 60:02d} left"
            bar.update(task, description=f"{STAGES[stage]} {done}/{total}", completed=passed, left=shown)

        yield update


def _say_dry_run(sites: list[Site], peaks: Peaks, gpu: bool, as_json: bool) -> None:
    from hqtvae_fast.ops.spec import all_specs
    from hqtvae_fast.tune.report import candidate_rows, predicted_seconds

    rows = candidate_rows(sites, all_specs(), peaks)
    seconds = predicted_seconds(sites, all_specs(), peaks, gpu)
    if as_json:
        typer.echo(json.dumps({"device": peaks.name, "choices": rows, "predicted_seconds": seconds}, indent=1))
        return
    shown = table(f"Choices on {peaks.name}", "choice", "default", "candidates", "floor, us")
    for row in rows:
        what = ", ".join(row["candidates"]) or row["why"]
        shown.add_row(row["choice"], row["default"], what, f"{1e3 * row['floor_ms']:.3g}")
    show(shown)
    stages = ", ".join(f"{STAGES[stage].lower()} {value / 60:.1f} min" for stage, value in seconds.items())
    typer.echo(f"prediction, not measured: {stages}")


def _say_result(result: Result, peaks: Peaks, path: str, asked: _Asked, *, written: bool) -> None:
    from dataclasses import asdict

    from hqtvae_fast.tune.report import result_rows

    rows = result_rows(result, peaks)
    engine = {str(batch): asdict(own) for batch, own in result.engine.items()}
    if asked.as_json:
        content: dict[str, Any] = {
            "choices": rows,
            "engine": engine,
            "refused": result.refused,
            "stopped": result.stopped,
        }
        content |= {
            "seconds_by_batch": result.seconds,
            "batches": result.batches,
            "best_batch": result.best,
            "verified": sorted(result.verified),
            "unreached": sorted(result.unreached),
            "untried": result.untried.total(),
            "plan": path if written else None,
        }
        typer.echo(json.dumps(content, indent=1))
        return
    if not asked.verify_only:
        shown = table("Choices", "choice", "chosen", "ms", "incumbent", "its ms", "of floor", "same bits", "")
        for row in rows:
            times = [f"{row['ms']:.4g}", row["incumbent"], f"{row['incumbent_ms']:.4g}"]
            last = [f"{100 * row['share_of_floor']:.0f} %", "yes" if row["same_bits"] else "no", row["note"]]
            shown.add_row(row["choice"], row["chosen"], *times, *last)
        show(shown)
        for batch, own in result.engine.items():
            typer.echo(f"engine, batch {batch}: {own.variant or 'as it is by itself'}")
        for batch, seconds in result.seconds.items():
            fastest = ", the fastest" if batch == result.best else ""
            typer.echo(f"batch {batch}: {batch / seconds:.4g} images/s{fastest}")
    typer.echo(
        f"right here: {len(result.verified)} variants" + (f"; stopped: {result.stopped}" if result.stopped else "")
    )
    if result.untried:
        typer.echo(f"not tried for lack of time: {count(result.untried.total(), 'candidate')}")
    if result.unreached:
        what = ", ".join(sorted(result.unreached))
        typer.echo(f"not verified, so passed over until a larger --budget reaches them: {what}")
    for label, reason in result.refused.items():
        typer.echo(f"refused: {label}: {reason}")
    if not written and not asked.verify_only:
        typer.echo("nothing was timed: no plan is written; a larger --budget gets further")
    elif written:
        typer.echo(f"wrote {path}")
