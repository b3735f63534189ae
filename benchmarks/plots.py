"""The report's pictures: throughput against batch, a roofline, and ours beside each baseline, op by op.

Each is drawn for light and for dark pages. Every figure in them is a row of a results file: nothing is computed here
but quotients. Colours are Okabe and Ito's, told apart with any kind of sight; entrants keep theirs in all pictures.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no window, no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import stats
from benchmarks.schema import Results, Row

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SIZE, DPI = (7.2, 4.2), 110
ROW_HEIGHT = 0.34  # inches, of a bar


@dataclass(frozen=True)
class Theme:
    name: str
    ink: str
    faint: str
    page: str


THEMES = (Theme("light", "#24292f", "#d0d7de", "#ffffff"), Theme("dark", "#e6edf3", "#3d444d", "#0d1117"))


def draw(plot: Callable[[Axes], None], theme: Theme, size: tuple[float, float] = SIZE) -> bytes:
    """A PNG of what ``plot`` does with the axes, in the theme's colours."""
    settings = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), theme.ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.page),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), theme.faint),
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
        **{"font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left"},
    }
    with matplotlib.rc_context(settings):
        figure, axes = plt.subplots(figsize=size, dpi=DPI, layout="constrained")
        plot(axes)
        return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------------- throughput


def throughput(every: Sequence[Results]) -> Callable[[Axes], None] | None:
    """Images/s against batch, a line for each model and entrant, with the interval over its runs or processes; None
    without a result of whole images."""
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for results in every:
        for row in results.rows if results.benchmark == "generate" else ():
            if row.work.get("part") == "total":
                low, high = stats.bootstrap_interval(row.samples)
                images = row.work["images"]
                label = f"{row.work['model']}, {row.entrant} ({row.work['precision']})"
                point = (row.work["batch"], *(images / seconds for seconds in (row.median, high, low)))
                lines.setdefault(label, []).append(point)
    if not lines:
        return None

    def plot(axes: Axes) -> None:
        batches = sorted({point[0] for points in lines.values() for point in points})
        for label, points in lines.items():
            batch, rate, low, high = np.array(sorted(points)).T
            axes.errorbar(batch, rate, yerr=(rate - low, high - rate), marker="o", capsize=3, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.margins(x=0.15)
        axes.set(xlabel="images a batch", ylabel="images/s", title="Images per second, codes and pixels together")
        axes.grid(axis="y", linewidth=0.6)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)

    return plot


# ----------------------------------------------------------------------------------------------------------- roofline


def roofline(results: Results) -> Callable[[Axes], None] | None:
    """FLOP/s against FLOPs a byte, by the specs' least work; None without the device's peaks or rows of ours."""
    peaks: Mapping[str, Any] | None = results.details.get("peaks")
    rows = [row for row in results.rows if row.ours and row.work.get("flops") and row.work.get("bytes")]
    if not peaks or not rows:
        return None
    measured = results.details.get("measured_peaks", peaks)
    by_op: dict[str, list[Row]] = {}
    for row in rows:
        by_op.setdefault(row.work["op"], []).append(row)

    def plot(axes: Axes) -> None:
        ridge = peaks["flops"] / peaks["bandwidth"]
        intensity = [row.work["flops"] / row.work["bytes"] for row in rows]
        span = np.geomspace(min(*intensity, ridge) / 3, max(*intensity, ridge) * 3, 200)
        roof = np.minimum(span * peaks["bandwidth"], peaks["flops"])
        axes.plot(span, roof, color=axes.xaxis.label.get_color(), linewidth=1.2)
        if measured["flops"] != peaks["flops"]:
            reached = np.minimum(span * measured["bandwidth"], measured["flops"])
            axes.plot(
                span, reached, "--", color=axes.xaxis.label.get_color(), linewidth=1, label="measured in this run"
            )
        axes.axvline(ridge, linestyle=":", linewidth=0.8, color=axes.xaxis.label.get_color())
        for (op, own), marker in zip(by_op.items(), "osD^vP*X<>" * 9, strict=False):
            points = [(row.work["flops"] / row.work["bytes"], row.work["flops"] / row.median) for row in own]
            axes.plot(*zip(*points, strict=True), marker, label=op, markersize=6)
        axes.set(xscale="log", yscale="log", xlabel="least FLOPs a byte", ylabel="FLOP/s")
        title = (
            f"Roofline: {peaks['flops'] / 1e12:,.3g} TFLOP/s ({peaks['dtype']}), {peaks['bandwidth'] / 1e9:,.3g} GB/s"
        )
        axes.set_title(title)
        axes.grid(linewidth=0.4)
        axes.legend(loc="lower right")

    return plot


# --------------------------------------------------------------------------------------------------------- op by op


def bars(results: Results) -> tuple[Callable[[Axes], None], tuple[float, float]] | None:
    """Time of each entrant over that of ours (what a user gets), case by case, and the size that so many bars need.
    Bars begin at 1, on a logarithmic axis: twice as long and half as long are equally long. None without a row."""
    rows = [row for row in results.rows if row.work.get("times_longer_than_ours")]
    if not rows:
        return None
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row.name, []).append(row)
    entrants = list(dict.fromkeys(row.entrant for row in sorted(rows, key=lambda row: not row.ours)))
    height = sum(len(own) * ROW_HEIGHT * 0.6 + ROW_HEIGHT for own in by_case.values()) + 1.6

    def plot(axes: Axes) -> None:
        seen, place, ticks = set(), 0.0, []
        for own in by_case.values():
            first = place
            for row in sorted(own, key=lambda row: entrants.index(row.entrant)):
                ratio, label = row.work["times_longer_than_ours"], row.entrant
                colour = COLOURS[entrants.index(label) % len(COLOURS)]
                axes.barh(place, ratio - 1, 0.5, left=1, color=colour, label=None if label in seen else label)
                side = "left" if ratio >= 1 else "right"
                axes.annotate(f" {ratio:.2g}x ", (ratio, place), va="center", ha=side, fontsize=7.5)
                seen.add(label)
                place += 0.6
            ticks.append((first + place - 0.6) / 2)
            place += 1 - 0.6
        axes.axvline(1, linewidth=1, color=axes.xaxis.label.get_color())
        axes.set_yticks(ticks, list(by_case), fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.margins(x=0.18, y=0.02)
        axes.set_xlabel("time over that of ours; left of the line is faster than ours")
        axes.set_title("Ops: every backend and baseline")
        assert isinstance(axes.figure, Figure)
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)

    return plot, (SIZE[0] + 1.6, height)
