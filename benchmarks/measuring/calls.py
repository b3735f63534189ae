"""Calls of one kind, timed one by one and in turns: what the train and encode suites have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measuring.clocks import Watch, unfit_by_load
from benchmarks.measuring.environment import OtherWork, PeakMemory
from benchmarks.measuring.figures import plain
from benchmarks.measuring.schema import Results, Row, write
from benchmarks.measuring.timing import take_turns, time_once

WARM_UP = 2  # calls that do not count: they compile, allocate, and fill an optimiser's state
Json = Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file, times in seconds.")]


@dataclass(frozen=True)
class Entrant:
    """``run()`` makes ``images`` images, however it does."""

    name: str
    run: Callable[[], Any]
    ours: bool = True


def measure(
    name: str, entrants: Sequence[Entrant], images: int, device: torch.device, repeats: int, work: Mapping[str, Any]
) -> list[Row]:
    """A row for each entrant; ``work`` is added to each one's. Peak memory is that of the warm-up: on a GPU what torch
    held beyond what was there before, on a CPU that of the process, which cannot tell the entrants apart."""
    peaks = []
    for entrant in entrants:
        meter = PeakMemory(device)
        for _ in range(WARM_UP):
            entrant.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        peaks.append(meter.read())
    samples: list[list[float]] = [[] for _ in entrants]
    with OtherWork() as others, Watch(device) as watch:
        for turn in take_turns([repeats] * len(entrants)):
            samples[turn].append(time_once(entrants[turn].run, (), device))
    load = None if device.type == "cuda" else others.cpus
    return [
        Row(
            *(name, entrant.name, (tuple(runs),)),
            ours=entrant.ours,
            work={"images": images, "peak_memory": peak, **work},
            clocks=watch.summary(),
            unfit=watch.unfit() or unfit_by_load(load),
        )
        for entrant, runs, peak in zip(entrants, samples, peaks, strict=True)
    ]


def show(results: Results, json: Path | None) -> None:
    """A table on stdout, and the file if one is named."""
    facts = results.environment
    caption = f"{facts['device']}, {facts['threads']} threads; torch {facts['torch']}; revision {facts['git_revision']}"
    table = Table(box=box.SIMPLE_HEAD, caption=f"{caption}; {facts['date']}", caption_justify="left")
    for column in ("what", "by whom"):
        table.add_column(column)
    for column in ("median, ms", "min, ms", "images/s", "peak memory, GiB"):
        table.add_column(column, justify="right")
    for row in results.rows:
        figures = (row.median * 1e3, min(row.runs) * 1e3, row.work["images"] / row.median)
        cells = [plain(value) for value in figures] + [f"{row.work['peak_memory'] / 2**30:,.2f}"]
        table.add_row(row.name, row.entrant, *cells)
        if row.unfit:
            typer.echo(f"unfit to quote: {row.name}: {row.unfit}", err=True)
    Console().print(table)
    if json is not None:
        write(results, json)
