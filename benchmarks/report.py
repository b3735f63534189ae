"""A benchmark's outcome: the JSON document, and the table that a person reads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks import clocks
from benchmarks.schema import Results, Row
from benchmarks.timing import Sampler, Timing

Pick = Callable[[Sequence[float]], float]
STEADY = 1.1  # runs within 10% of each other need no comment
SUMMARIES: dict[str, Pick] = {"min": min, "median": statistics.median}


@dataclass(frozen=True)
class Workload:
    """What every entrant makes in one run."""

    model: str
    images: int
    batch: int
    steps: int
    """Autoregressive steps that a run issues: those of one image, times the number of batches."""


@dataclass(frozen=True)
class Entrant:
    """One sampler's timings. ``peak_memory`` in bytes, None where it cannot be told apart."""

    name: str
    precision: str
    parameters: int
    peak_memory: int | None
    timings: list[Timing]

    @classmethod
    def of(cls, sampler: Sampler, peak_memory: int | None, timings: list[Timing]) -> Entrant:
        return cls(sampler.name, sampler.precision, sampler.parameters, peak_memory, timings)

    @property
    def spread(self) -> float:
        """The slowest run's time over the fastest's."""
        totals = [timing.total for timing in self.timings]
        return max(totals) / min(totals)

    def summary(self, workload: Workload, pick: Pick) -> dict[str, float]:
        """Seconds of AR, of decoding and of both, each picked by itself, and what follows from them."""
        ar, decode, total = (pick([getattr(t, part) for t in self.timings]) for part in ("ar", "decode", "total"))
        return {
            "ar_seconds": ar,
            "decode_seconds": decode,
            "total_seconds": total,
            "ar_seconds_per_step": ar / workload.steps,
            "decode_seconds_per_image": decode / workload.images,
            "images_per_second": workload.images / total,
        }

    def to_dict(self, workload: Workload) -> dict[str, Any]:
        return {
            "precision": self.precision,
            "parameters": self.parameters,
            "peak_memory_bytes": self.peak_memory,
            "spread": self.spread,
            "runs": [_run(timing) for timing in self.timings],
            **{name: self.summary(workload, pick) for name, pick in SUMMARIES.items()},
        }


def _run(timing: Timing) -> dict[str, float | None]:
    return {
        "ar_seconds": timing.ar,
        "decode_seconds": timing.decode,
        "total_seconds": timing.total,
        "cpus_busy_elsewhere": timing.busy_elsewhere,
    }


def ratios(ours: Entrant, other: Entrant) -> dict[str, dict[str, float]]:
    """How many times longer the other takes, for AR, decoding and both."""
    return {
        name: {
            part: pick([getattr(t, part) for t in other.timings]) / pick([getattr(t, part) for t in ours.timings])
            for part in ("ar", "decode", "total")
        }
        for name, pick in SUMMARIES.items()
    }


def to_results(workload: Workload, sampling: dict[str, Any], entrants: list[Entrant], facts: dict[str, Any]) -> Results:
    """Everything measured and everything it depends on; times in seconds, memory in bytes."""
    details = {
        "workload": {**vars(workload), "sampling": sampling},
        "entrants": {entrant.name: entrant.to_dict(workload) for entrant in entrants},
        "times_longer_than_ours": {other.name: ratios(entrants[0], other) for other in entrants[1:]},
    }
    rows = [row for entrant in entrants for row in to_rows(workload, entrant, ours=entrant is entrants[0])]
    return Results("generate", facts, tuple(rows), details)


PARTS = {"draw": "ar", "decode": "decode", "total": "total"}


def to_rows(workload: Workload, entrant: Entrant, ours: bool) -> list[Row]:
    """Drawing, decoding and both, of the runs of this process."""
    loads = [t.busy_elsewhere for t in entrant.timings if t.busy_elsewhere is not None]
    moved = [t.unfit for t in entrant.timings if t.unfit]
    label = f"{workload.model}, batch {workload.batch}"
    label += f", {workload.images} images" if workload.images != workload.batch else ""
    watched = [t.clocks for t in entrant.timings if t.clocks]
    return [
        Row(
            name=f"{label}: {part}",
            entrant=entrant.name,
            samples=(tuple(getattr(t, field) for t in entrant.timings),),
            ours=ours,
            work={**vars(workload), "part": part, "precision": entrant.precision, "peak_memory": entrant.peak_memory},
            clocks=watched[-1] if watched else None,
            unfit=moved[0] if moved else clocks.unfit_by_load(max(loads, default=None)),
        )
        for part, field in PARTS.items()
        if all(getattr(t, field) > 0 for t in entrant.timings)
    ]


def to_table(workload: Workload, entrants: list[Entrant], facts: dict[str, Any]) -> Table:
    """Median (min) of each figure, an entrant a column, and how many times longer the others take."""
    table = Table(
        title=f"{workload.model}: {workload.images} images in batches of {workload.batch}",
        caption=_caption(facts),
        caption_justify="left",
    )
    table.add_column("median (min)")
    for entrant in entrants:
        runs = len(entrant.timings)
        table.add_column(f"{entrant.name}\n{entrant.precision}, {runs} run{'s' if runs > 1 else ''}", justify="right")
    for other in entrants[1:]:
        table.add_column(f"{other.name} /\n{entrants[0].name}", justify="right")
    for row in _rows(workload, entrants):
        table.add_row(*row)
    return table


def _rows(workload: Workload, entrants: list[Entrant]) -> list[list[str]]:
    lines = (
        ("AR, s", "ar_seconds", 1, "ar"),
        ("AR, ms/step", "ar_seconds_per_step", 1000, ""),
        ("decode, s", "decode_seconds", 1, "decode"),
        ("decode, ms/image", "decode_seconds_per_image", 1000, ""),
        ("AR + decode, s", "total_seconds", 1, "total"),
    )
    columns = [entrant.to_dict(workload) for entrant in entrants]
    factors = [ratios(entrants[0], other) for other in entrants[1:]]
    rows = []
    for label, key, unit, part in lines:
        cells = [f"{c['median'][key] * unit:,.4g} ({c['min'][key] * unit:,.4g})" for c in columns]
        rows.append([label, *cells, *(f"{f['median'][part]:.2f}x" if part else "" for f in factors)])
    rates = [f"{c['median']['images_per_second']:,.4g}" for c in columns]
    memory = ["-" if e.peak_memory is None else f"{e.peak_memory / 2**30:,.2f}" for e in entrants]
    spreads = [f"{entrant.spread:.2f}x" for entrant in entrants]
    busy = [f"{max(t.busy_elsewhere or 0.0 for t in entrant.timings):.2f}" for entrant in entrants]
    return [
        *rows,
        ["images/s", *rates],
        ["slowest / fastest", *spreads],
        ["CPUs busy elsewhere", *busy],
        ["peak memory, GiB", *memory],
    ]


def warning(entrants: list[Entrant]) -> str | None:
    """What to say where runs of the same work took too different times, whatever it was that disturbed them."""
    worst = max(entrant.spread for entrant in entrants)
    if worst <= STEADY:
        return None
    busy = max(timing.busy_elsewhere or 0.0 for entrant in entrants for timing in entrant.timings)
    return f"runs differ {worst:.2f}x (other processes used up to {busy:.2f} CPUs): give the spread with any figure"


def _caption(facts: dict[str, Any]) -> str:
    return (
        f"{facts['device']}, {facts['cpus']} CPUs, {facts['threads']} threads, load {facts['load_average']} before; "
        f"torch {facts['torch']}; revision {facts['git_revision'] or 'unknown'}; {facts['date']}"
    )
