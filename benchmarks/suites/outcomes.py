"""An end-to-end benchmark's outcome: the rows of its results file, and the table that a person reads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.measuring import clocks
from benchmarks.measuring.figures import of_floor, plain
from benchmarks.measuring.schema import Results, Row
from benchmarks.measuring.timing import Sampler, Timing
from hqtvae_fast.hardware import Device
from hqtvae_fast.model.cost import ImageCost

Pick = Callable[[Sequence[float]], float]
STEADY = 1.1  # runs within 10% of each other need no comment
PARTS = {"draw": "ar", "decode": "decode", "total": "total"}


@dataclass(frozen=True)
class Workload:
    """What every entrant makes in one run."""

    model: str
    images: int
    batch: int
    steps: int
    """Autoregressive steps that a run issues: those of one image, times the number of batches."""

    @property
    def label(self) -> str:
        return f"{self.model}, batch {self.batch}" + (f", {self.images} images" if self.images != self.batch else "")


@dataclass(frozen=True)
class Roof:
    """What the device allows at best: seconds of a run's drawing and decoding, each bound by arithmetic or bandwidth,
    and images/s by arithmetic alone, one half after the other, upsampling as the model is written."""

    draw: float
    decode: float
    images_per_second: float
    device: str

    @classmethod
    def of(cls, cost: ImageCost, sizes: Sequence[int], peaks: Device) -> Roof:
        floors = [cost.floor(size, peaks) for size in sizes]
        seconds = (sum(floor.draw for floor in floors), sum(floor.decode for floor in floors))
        return cls(*seconds, cost.roof(peaks), f"{peaks.name}, {plain(peaks.flops / 1e12)} TFLOP/s")

    def seconds(self, part: str, images: int) -> float:
        """Least seconds of a run's part; of both, by the roof."""
        return {"draw": self.draw, "decode": self.decode}.get(part, images / self.images_per_second)


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

    def seconds(self, part: str, pick: Pick = statistics.median) -> float:
        """Of a run's "draw", "decode" or "total", picked by itself."""
        return pick([getattr(timing, PARTS[part]) for timing in self.timings])

    @property
    def joules(self) -> float | None:
        return median_joules(self.timings)


@dataclass(frozen=True)
class Outcome:
    """One workload, by all entrants, ours first. ``whole``: times of whole pictures on the host, by how they were asked
    for ("batch by batch", "stream"); empty where a run is one batch, in which nothing can overlap."""

    workload: Workload
    roof: Roof
    entrants: list[Entrant]
    whole: dict[str, list[Timing]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def best_rate(self) -> float:
        """Images/s of ours, however it was asked for."""
        whole = [statistics.median(t.total for t in timings) for timings in self.whole.values()]
        return self.workload.images / min(self.entrants[0].seconds("total"), *whole, float("inf"))


def median_joules(timings: Sequence[Timing]) -> float | None:
    """None unless each run was long enough for the counter."""
    each = [timing.joules for timing in timings if timing.joules is not None]
    return statistics.median(each) if each and len(each) == len(timings) else None


# ------------------------------------------------------------------------------------------------------- results files


def to_results(outcomes: Sequence[Outcome], sampling: dict[str, Any], facts: dict[str, Any]) -> Results:
    """Everything measured and everything it depends on; times in seconds, memory in bytes, energy in joules."""
    rows = [row for outcome in outcomes for row in _rows_of(outcome)]
    details = {
        "sampling": sampling,
        "roofs": {outcome.workload.label: vars(outcome.roof) for outcome in outcomes},
        "notes": [note for outcome in outcomes for note in outcome.notes],
    }
    return Results("generate", facts, tuple(rows), details)


def _rows_of(outcome: Outcome) -> list[Row]:
    """Drawing, decoding and both by each entrant, and ours whole, of the runs of this process."""
    rows = []
    for entrant in outcome.entrants:
        ours = entrant is outcome.entrants[0]
        for part in PARTS:
            rows.append(_row(outcome, part, entrant.name, entrant, entrant.timings, ours))
    for how, timings in outcome.whole.items():
        ours = outcome.entrants[0]
        rows.append(_row(outcome, how, ours.name, ours, timings, True))
    return rows


def _row(outcome: Outcome, part: str, name: str, entrant: Entrant, timings: Sequence[Timing], ours: bool) -> Row:
    loads = [t.busy_elsewhere for t in timings if t.busy_elsewhere is not None]
    moved, watched = [t.unfit for t in timings if t.unfit], [t.clocks for t in timings if t.clocks]
    seconds = tuple(getattr(t, PARTS.get(part, "total")) for t in timings)
    work = {**vars(outcome.workload), "part": part, "precision": entrant.precision}
    work |= {"parameters": entrant.parameters, "peak_memory": entrant.peak_memory}
    work |= {"floor_seconds": outcome.roof.seconds(part, outcome.workload.images)}
    work |= {"joules": None if part in ("draw", "decode") else median_joules(timings)}
    if part in PARTS:
        work["times_longer_than_ours"] = entrant.seconds(part) / outcome.entrants[0].seconds(part)
    return Row(
        name=f"{outcome.workload.label}: {part}",
        entrant=name,
        samples=(seconds,),
        ours=ours,
        work=work,
        clocks=watched[-1] if watched else None,
        unfit=moved[0] if moved else clocks.unfit_by_load(max(loads, default=None)),
    )


# -------------------------------------------------------------------------------------------------------------- tables


def to_table(outcome: Outcome, facts: dict[str, Any]) -> Table:
    """Median (min) of each figure, an entrant a column."""
    workload = outcome.workload
    title = f"{workload.model}: {workload.images} images in batches of {workload.batch}"
    caption = f"{_caption(facts)}\nRoof: {plain(outcome.roof.images_per_second)} images/s ({outcome.roof.device})"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("median (min)")
    for entrant in outcome.entrants:
        runs = len(entrant.timings)
        table.add_column(f"{entrant.name}\n{entrant.precision}, {runs} run{'s' if runs > 1 else ''}", justify="right")
    for label, cell in _lines(outcome):
        table.add_row(label, *(cell(entrant) for entrant in outcome.entrants))
    return table


def _lines(outcome: Outcome) -> list[tuple[str, Callable[[Entrant], str]]]:
    """Labels, and what stands there for an entrant."""
    work, roof, ours = outcome.workload, outcome.roof, outcome.entrants[0]

    def times(part: str, unit: float) -> Callable[[Entrant], str]:
        return lambda e: f"{plain(e.seconds(part) * unit)} ({plain(e.seconds(part, min) * unit)})"

    def share(part: str) -> Callable[[Entrant], str]:
        return lambda e: of_floor(roof.seconds(part, work.images), e.seconds(part))

    def ratio(part: str) -> Callable[[Entrant], str]:
        return lambda e: "" if e is ours else f"{e.seconds(part) / ours.seconds(part):.2f}x"

    return [
        ("AR, s", times("draw", 1)),
        ("AR, ms/step", times("draw", 1e3 / work.steps)),
        ("AR, of its floor", share("draw")),
        ("AR, times ours", ratio("draw")),
        ("decode, s", times("decode", 1)),
        ("decode, ms/image", times("decode", 1e3 / work.images)),
        ("decode, of its floor", share("decode")),
        ("decode, times ours", ratio("decode")),
        ("AR + decode, s", times("total", 1)),
        ("images/s", lambda e: plain(work.images / e.seconds("total"))),
        ("of the roof", share("total")),
        ("times ours", ratio("total")),
        ("images/J", lambda e: _or_dash(e.joules, lambda joules: plain(work.images / joules, 3))),
        ("peak memory, GiB", lambda e: _or_dash(e.peak_memory, lambda peak: f"{peak / 2**30:,.2f}")),
        ("slowest / fastest", lambda e: f"{e.spread:.2f}x"),
        ("CPUs busy elsewhere", lambda e: f"{max(t.busy_elsewhere or 0.0 for t in e.timings):.2f}"),
    ]


def _or_dash(value: float | None, show: Callable[[float], str]) -> str:
    return "-" if value is None else show(value)


def tell_whole(outcome: Outcome) -> str | None:
    """What overlapping gains, in a sentence; None where it was not measured."""
    if not outcome.whole:
        return None
    medians = {how: statistics.median(t.total for t in timings) for how, timings in outcome.whole.items()}
    rates = ", ".join(f"{how} {plain(outcome.workload.images / seconds)} images/s" for how, seconds in medians.items())
    gain = medians["batch by batch"] / medians["stream"]
    energy = median_joules(outcome.whole["stream"])
    spent = "" if energy is None else f"; {plain(outcome.workload.images / energy, 3)} images/J as a stream"
    return f"pictures on the host: {rates}: {gain:.2f} times as fast{spent}"


def tell_best(outcomes: Sequence[Outcome]) -> list[str]:
    """A line a model that was run in several batches: the best of them."""
    lines = []
    for model in dict.fromkeys(outcome.workload.model for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.workload.model == model]
        best = max(own, key=lambda outcome: outcome.best_rate)
        share = best.best_rate / best.roof.images_per_second
        if len(own) > 1:
            lines.append(f"{model}: best at batch {best.workload.batch}, {plain(best.best_rate)} images/s, {share:.1%}")
    return lines


def warning(entrants: Sequence[Entrant]) -> str | None:
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
