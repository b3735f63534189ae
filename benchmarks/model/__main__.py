"""Predicted times of a step, of a decode and of whole batches on a GPU that need not be there.

python -m benchmarks.model --preset S --device h100 --batch 50
python -m benchmarks.model --preset S --device h100 --batch 1 --engine skip_query     # with the engine run so
python -m benchmarks.model --preset S --device a100 --convolutions triton/int8        # the decoder's in 8 bits
python -m benchmarks.model --preset S --device h100 --batch 50 --plan PLAN.json       # beside what a plan measured

Kernels and shapes are those that the engine launches, found on fake tensors; what each takes is in
:mod:`benchmarks.model.times`. A prediction, good to a fifth at best, for saying what a change should gain before a GPU
says what it gains.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measuring.figures import plain
from benchmarks.model.calls import calls_of_decode
from benchmarks.model.times import GAP, best_variant, floor, predict, shape_of
from benchmarks.options import run
from hqtvae_fast.config import PRESETS
from hqtvae_fast.config import preset as preset_of
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.hardware import DEVICES, Device
from hqtvae_fast.plan import site
from hqtvae_fast.plan_file import Measured, PlanFile
from hqtvae_fast.tune.launches import Call, calls_of_step


@dataclass
class Line:
    """Calls of one kind and shape: how many, seconds of each as predicted, at least, and as measured (None: not).
    ``best``: the name and predicted seconds of a tile that should be faster, if there is one."""

    name: str
    shape: str
    bound: str
    seconds: float
    floor: float
    measured: float | None
    best: tuple[str, float] | None = None
    count: int = 0

    @property
    def total(self) -> float:
        return self.count * self.seconds


def lines_of(calls: Iterable[Call], device: Device, choices: Mapping[str, Measured]) -> list[Line]:
    """In the order of their first calls."""
    found: dict[tuple[str, str, str], Line] = {}
    for call in calls:
        predicted, shape, measured = predict(call, device), shape_of(call), _measured(call, choices)
        key = (call.name, shape, predicted.bound)
        if key not in found:
            best = best_variant(call, device)
            found[key] = Line(*key, predicted.seconds, floor(call, device), measured, best)
        found[key].count += 1
    return list(found.values())


def _measured(call: Call, choices: Mapping[str, Measured]) -> float | None:
    """Seconds of the plan's variant at this choice; a call is given what the choice was told, and more after it."""
    for count in range(len(call.inputs), 0, -1):
        own = choices.get(site(call.name, call.inputs[:count]))
        if own is not None and own.median is not None:
            return own.median / 1e6
    return None


def total(lines: Iterable[Line]) -> float:
    """Seconds of all, with the gaps between them."""
    return sum(line.total + line.count * GAP for line in lines)


def table_of(title: str, lines: list[Line]) -> Table:
    table = Table("kernel", "shape", "bound by", title=title, title_justify="left", box=box.SIMPLE)
    timed = any(line.measured is not None for line in lines)
    for column in ("launches", "us each", "us", "floor, us", *(("measured, us each", "error") if timed else ())):
        table.add_column(column, justify="right")
    for line in lines:
        cells = [plain(line.seconds * 1e6), plain(line.total * 1e6), plain(line.count * line.floor * 1e6)]
        if timed and line.measured is not None:
            cells += [plain(line.measured * 1e6), f"{100 * (line.seconds / line.measured - 1):+.0f}%"]
        table.add_row(line.name, line.shape, line.bound, str(line.count), *cells)
    kernels = sum(line.count for line in lines)
    least = sum(line.count * line.floor for line in lines)
    table.add_section()
    table.add_row("gaps", "", "", "", plain(GAP * 1e6), plain(kernels * GAP * 1e6))
    table.add_row("all", "", "", str(kernels), "", plain(total(lines) * 1e6), plain(least * 1e6))
    return table


def faster_tiles(lines: Iterable[Line]) -> list[str]:
    """A sentence for each tile that should be faster than what runs by itself, then one of what all save; nothing if
    there is none."""
    better = [(line, *line.best) for line in lines if line.best is not None]
    said = [
        f"{line.name} {line.shape}: {name}, {plain(seconds * 1e6)} us"
        f" in place of {plain(line.seconds * 1e6)} (predicted)"
        for line, name, seconds in better
    ]
    saved = sum(line.count * (line.seconds - seconds) for line, _, seconds in better)
    return [*said, f"with these {plain(saved * 1e6)} us less (predicted)"] if said else []


def device_of(name: str) -> Device:
    """By its key, or what that begins with, in any case: the largest of these. ValueError on another."""
    found = [device for key, device in DEVICES.items() if key.lower().startswith(name.lower())]
    if not name or not found:
        raise ValueError(f"--device: expected one of {', '.join(DEVICES)}; got {name!r}")
    return max(found, key=lambda device: device.memory)


def model(
    preset: Annotated[str, typer.Option("--preset", metavar="NAME", help=", ".join(PRESETS))] = "S",
    device_name: Annotated[str, typer.Option("--device", metavar="NAME", help=", ".join(DEVICES))] = "H100",
    batches: Annotated[list[int], typer.Option("--batch", metavar="N", min=1, help="Images at once.")] = [50],  # noqa: B006
    engine: Annotated[str, typer.Option("--engine", metavar="WORDS", help="How the engine runs.")] = "",
    convolutions: Annotated[
        str | None, typer.Option("--convolutions", metavar="NAME", help="In 8 bits: triton/int8, triton/fp8.")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="Of a GPU, measured.")] = None,
) -> None:
    """Predict a step's, a decode's and a batch's time on a GPU, kernel by kernel."""
    try:
        device, options = device_of(device_name), EngineOptions.read(engine)
        config = preset_of(preset)
        choices = {} if plan is None else PlanFile.read(plan).choices
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else 140
    assert config.transformer is not None
    for batch in batches:
        step = lines_of(calls_of_step(config.transformer, "fused", batch=batch, options=options), device, choices)
        decode = lines_of(calls_of_decode(config.vae, batch, convolutions=convolutions), device, choices)
        eight = "" if convolutions is None else f", convolutions {convolutions}"
        where = f"{preset}, batch {batch}, {device.name}, bf16{engine and ', ' + engine}{eight}"
        console.print(table_of(f"A step: {where} (predicted)", step))
        console.print(table_of(f"A decode: {where} (predicted)", decode))
        console.print(*faster_tiles(decode), sep="\n")
        drawn, decoded = config.transformer.num_steps * total(step), total(decode)
        console.print(
            f"{where}, predicted: AR {plain(drawn * 1e3)} ms, decode {plain(decoded * 1e3)} ms,"
            f" {plain(batch / (drawn + decoded))} images/s one after the other\n"
        )


def main(arguments: list[str] | None = None) -> None:
    run(model, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
