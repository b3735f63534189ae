"""The report's pictures: throughput against batch, a roofline, and ours beside each baseline, op by op.

How they look is :mod:`hqtvae_fast.pictures.plots`'s. Every figure in them is a row of a results file: nothing is
computed here but quotients and their means.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.measuring import stats
from benchmarks.measuring.figures import plain
from benchmarks.measuring.schema import Results, Row
from hqtvae_fast.pictures.plots import COLOURS

SIZE = (7.2, 4.2)
WIDE = (9.4, 4.8)  # with a legend beside it
LINE_HEIGHT = 0.2  # inches
MARKERS = "osD^vP*X<>"
LABELS = {"draw": "drawing codes", "decode": "decoding to pixels"}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # 0.5 and 20, not powers of ten


# --------------------------------------------------------------------------------------------------------- throughput


def throughput(results: Results) -> dict[str, Callable[[Axes], None]]:
    """By model, of one run, for two runs' entrants are not side by side whatever their machines are called: images/s
    against batch where there are several, a line for each entrant with the interval over its runs or processes, and one
    for ours as a stream; else the seconds that an image takes each of them."""
    rows = [row for row in results.rows if results.benchmark == "generate"]
    plots: dict[str, Callable[[Axes], None]] = {}
    for model in dict.fromkeys(row.work["model"] for row in rows):
        own = [row for row in rows if row.work["model"] == model]
        where = f"{model} on {results.machine}"
        if len({row.work["batch"] for row in own}) > 1:
            plots[model] = functools.partial(_lines, where, _rates(own))
        else:
            plots[model] = functools.partial(_parts, where, results, own)
    return plots


def _rates(rows: Sequence[Row]) -> dict[str, dict[int, tuple[float, float, float]]]:
    """Images/s by entrant and batch: the median, and both ends of the interval."""
    lines: dict[str, dict[int, tuple[float, float, float]]] = {}
    for row in rows:
        if row.work.get("part") in ("total", "stream"):
            low, high = stats.bootstrap_interval(row.samples)
            words = [row.entrant, *(["as a stream"] if row.work["part"] == "stream" else []), row.work["precision"]]
            rates = [row.work["images"] / seconds for seconds in (row.median, high, low)]
            lines.setdefault(", ".join(words), {})[row.work["batch"]] = (rates[0], rates[1], rates[2])
    return lines


def _parts(where: str, results: Results, rows: Sequence[Row], axes: Axes) -> None:
    """Seconds an image, drawing and decoding end to end, an entrant a bar, ours on top."""
    totals = sorted((row for row in rows if row.work.get("part") == "total"), key=lambda row: not row.ours)
    for place, total in enumerate(totals):
        left = 0.0
        for part, colour in zip(("draw", "decode"), COLOURS, strict=False):
            for row in rows:
                if (row.entrant, row.work.get("part")) == (total.entrant, part):
                    seconds = row.median / row.work["images"]
                    axes.barh(place, seconds, 0.6, left=left, color=colour, label=None if place else LABELS[part])
                    left += seconds
        whole = total.median / total.work["images"]
        if not left:
            axes.barh(place, whole, 0.6, color=COLOURS[0])
        ratio = results.ratio(total)
        told = f" {plain(whole, 3)} s" + ("" if ratio is None else f", {ratio:.2f}x ours")
        axes.annotate(told, (max(left, whole), place), va="center", fontsize=9)
    axes.set_yticks(range(len(totals)), [f"{row.entrant}\n{row.work['precision']}" for row in totals])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(totals) - 0.4, -0.6)
    axes.margins(x=0.25)
    batch = f"batches of {totals[0].work['batch']}, one run" if totals else ""
    axes.set(xlabel="seconds an image, median", title=f"{where}: {batch}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right")


def _lines(where: str, lines: Mapping[str, Mapping[int, tuple[float, float, float]]], axes: Axes) -> None:
    batches = sorted({batch for points in lines.values() for batch in points})
    for index, (label, points) in enumerate(lines.items()):
        batch = sorted(points)
        rate, low, high = np.array([points[size] for size in batch]).T
        style = {"marker": MARKERS[index % len(MARKERS)], "linestyle": ("-", "--", ":")[index // len(COLOURS) % 3]}
        axes.errorbar(batch, rate, yerr=(rate - low, high - rate), capsize=3, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.15, y=0.15)
    axes.set(xlabel="images a batch", ylabel="images/s", title=f"{where}: images per second, one run")
    axes.grid(axis="y", linewidth=0.6)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


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
        for (op, own), marker in zip(by_op.items(), itertools.cycle(MARKERS)):
            points = [(row.work["flops"] / row.work["bytes"], row.work["flops"] / row.median) for row in own]
            axes.plot(*zip(*points, strict=True), marker, label=op, markersize=6)
        axes.set(xscale="log", yscale="log", xlabel="least FLOPs a byte", ylabel="FLOP/s")
        title = (
            f"Roofline: {plain(peaks['flops'] / 1e12, 3)} TFLOP/s ({peaks['dtype']}), "
            f"{plain(peaks['bandwidth'] / 1e9, 3)} GB/s"
        )
        axes.set_title(title)
        axes.grid(linewidth=0.4)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8)

    return plot


# --------------------------------------------------------------------------------------------------------- op by op


def bars(results: Results) -> tuple[Callable[[Axes], None], tuple[float, float]] | None:
    """Time of each backend and baseline over that of ours (what a user gets), op by op, the geometric mean over an op's
    cases, and the size that so many bars need. Bars begin at 1, on a logarithmic axis: twice as long and half as long
    are equally long. None without a row."""
    by_op: dict[str, dict[str, list[Row]]] = {}
    for row in sorted(results.rows, key=lambda row: (row.work.get("op", ""), not row.ours)):
        if row.work.get("op") and results.ours(row) is not None:
            by_op.setdefault(row.work["op"], {}).setdefault(row.entrant, []).append(row)
    if not by_op:
        return None
    # A line each: the op's name, its entrants below it, and half a line of nothing.
    lines = [line for op, entrants in by_op.items() for line in ((op, None), *entrants.items())]
    places = np.cumsum([1.5 if own is None else 1.0 for _, own in lines])

    def plot(axes: Axes) -> None:
        for (_, own), place in zip(lines, places, strict=True):
            if own is None:
                continue
            ratio = float(np.exp(np.mean([np.log(results.ratio(row) or 1.0) for row in own])))
            colour = COLOURS[0] if own[0].ours else COLOURS[1] if ratio < 1 else COLOURS[2]
            axes.barh(place, ratio - 1, 0.7, left=1, color=colour)
            axes.annotate(
                f" {ratio:.2g}x ", (ratio, place), va="center", ha="left" if ratio >= 1 else "right", fontsize=8
            )
        axes.axvline(1, linewidth=1, color=axes.xaxis.label.get_color())
        axes.set_yticks(places, [name for name, _ in lines], fontsize=8)
        for tick, (_, own) in zip(axes.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("bold" if own is None else "normal")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(places[-1] + 1, 0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(PLAIN)
        axes.margins(x=0.18)
        axes.set_xlabel("time over that of ours, geometric mean over cases; left of the line is faster than ours")
        axes.set_title("Ops: other backends of ours (blue), baselines that are slower (green) and faster (orange)")

    return plot, (SIZE[0] + 1.6, LINE_HEIGHT * float(places[-1]) + 1.2)
