"""What ``losses.jsonl`` tells of runs, as curves: losses, quality, codes in use and the learning rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqtvae_fast.config import level_names
from hqtvae_fast.pictures.plots import COLOURS, draw
from hqtvae_fast.run_folder import stage_runs
from hqtvae_fast.train.loop.records import LOSSES, read_records
from hqtvae_fast.train.words import HELD_OUT, by_level

POINTS = 120  # of a curve: what is logged more often is shown as means, within the range that they are of
COLUMNS, PANEL = 3, (3.7, 2.7)  # inches
STYLES = ("-", ":", "-.", (0, (1, 3)), (0, (5, 5)))  # of levels, where colours tell runs
LOGARITHMIC = 20.0  # largest over smallest value from which on an axis is
PANELS = {
    "loss": "loss",
    "mse": "squared error of pixels",
    "perceptual": "perceptual distance",
    "discriminator": "discriminator's loss",
    "psnr": "PSNR, dB",
    "usage": "codes in use",
    "level": "nats a code",
    "text": "text, nats a token",
    "learning_rate": "learning rate",
}
Record = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """``what``: a level's name, or empty. ``held_out``: of held-out pictures, not of those trained on."""

    run: str
    what: str
    held_out: bool
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Panel:
    title: str
    lines: list[Line]


@dataclass(frozen=True)
class Group:
    """Panels of the runs of one stage, whose figures mean the same."""

    stage: str
    panels: list[Panel]


# ------------------------------------------------------------------------------------------------------------- reading


def named_runs(given: Sequence[str]) -> dict[str, Path]:
    """Folders with losses by name, of ``PATH`` or ``NAME=PATH``; a run of both stages gives two. ValueError on a folder
    that is no run's."""
    found: dict[str, Path] = {}
    split = [text.partition("=") if "=" in text else ("", "", text) for text in given]
    places = {Path(path).resolve(): name for name, _, path in split}
    counts = Counter(place.name for place in places)
    for place, name in places.items():
        own = place.name if counts[place.name] == 1 else f"{place.parent.name}/{place.name}"
        for part, folder in _folders(place).items():
            found[f"{name or own}{part}"] = folder
    return found


def _folders(run: Path) -> dict[str, Path]:
    if (run / LOSSES).is_file():
        return {"": run}
    stages = {f", {name}": stage for name, stage in stage_runs(run).items() if (stage / LOSSES).is_file()}
    if not stages:
        raise ValueError(f"{run}: expected the folder of a run, with {LOSSES}; found none")
    return stages


def read_curves(runs: Mapping[str, Path]) -> list[Group]:
    """Stage 1 before stage 2. ValueError naming the file of a run that has logged nothing."""
    by_stage: dict[str, dict[str, list[Record]]] = {}
    for name, folder in runs.items():
        records = [record for record in read_records(folder / LOSSES)[0] if len(record) > 1]
        if not records:
            raise ValueError(f"{folder / LOSSES}: expected losses of at least one update; got none")
        stage = "stage 1" if any("mse" in record for record in records) else "stage 2"
        by_stage.setdefault(stage, {})[name] = records
    return [Group(stage, _panels(by_stage[stage])) for stage in sorted(by_stage)]


def _panels(runs: Mapping[str, Sequence[Record]]) -> list[Panel]:
    panels = [Panel(title, _lines(runs, name)) for name, title in PANELS.items()]
    return [panel for panel in panels if any(any(line.values) for line in panel.lines)]


def _lines(runs: Mapping[str, Sequence[Record]], name: str) -> list[Line]:
    lines = []
    for run, records in runs.items():
        everything = {key: 0.0 for record in records for key in record}
        levels = len(by_level(everything, name))
        keys = {f"{name}_{level}": own for level, own in enumerate(level_names(levels))} if levels else {name: ""}
        for key, what in keys.items():
            for prefix in ("", HELD_OUT):
                points = [
                    (record["step"], record[f"{prefix}{key}"]) for record in records if f"{prefix}{key}" in record
                ]
                if points:
                    steps, values = zip(*points, strict=True)
                    lines.append(Line(run, what, bool(prefix), list(steps), list(values)))
    return lines


# ------------------------------------------------------------------------------------------------------------- drawing


def losses_plot(runs: Mapping[str, Path], kind: str = "png") -> bytes:
    """Of runs by name: a panel for each figure, runs of the same stage laid over each other. ``kind`` as in
    :func:`hqtvae_fast.pictures.plots.draw`."""
    groups = read_curves(runs)
    heights = [-(-len(group.panels) // COLUMNS) for group in groups]

    def plot(axes: list[Any]) -> None:
        place = 0
        for group, height in zip(groups, heights, strict=True):
            own = axes[place : place + COLUMNS * height]
            place += COLUMNS * height
            for panel, panel_axes in zip(group.panels, own, strict=False):
                _draw_panel(panel_axes, panel, f"{group.stage}: " if len(groups) > 1 else "")
            for empty in own[len(group.panels) :]:
                empty.set_axis_off()

    size = (COLUMNS * PANEL[0], sum(heights) * PANEL[1])
    return draw(plot, size, rows=sum(heights), columns=COLUMNS, kind=kind)


def _draw_panel(axes: Any, panel: Panel, prefix: str) -> None:
    runs = list(dict.fromkeys(line.run for line in panel.lines))
    levels = list(dict.fromkeys(line.what for line in panel.lines))
    told: set[str] = set()
    for line in panel.lines:
        level, run = levels.index(line.what), runs.index(line.run)
        colour = COLOURS[(run if len(runs) > 1 else level) % len(COLOURS)]
        steps, means, low, high = thinned(line.steps, line.values)
        label = _label(line, len(runs) > 1, len(levels) > 1)
        style: dict[str, Any] = {"linestyle": STYLES[level % len(STYLES)] if len(runs) > 1 else "-"}
        if line.held_out or len(steps) == 1:
            style = {"linestyle": "--", "marker": "o", "markersize": 3}
        axes.plot(steps, means, color=colour, linewidth=1.4, label=None if label in told else label, **style)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        told.add(label)
    axes.set_title(f"{prefix}{panel.title}")
    axes.set_xlabel("updates")
    axes.grid(True, linewidth=0.5)
    _scale(axes, panel)
    if len(told) > 1:
        axes.legend(fontsize=8)


def _label(line: Line, many_runs: bool, many_levels: bool) -> str:
    if many_runs:
        return f"{line.run}, {line.what}" if many_levels else line.run
    return "held out" if line.held_out else line.what or "training"


def _scale(axes: Any, panel: Panel) -> None:
    values = [value for line in panel.lines for value in line.values]
    if panel.title == PANELS["usage"]:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    elif panel.title == PANELS["learning_rate"]:
        axes.set_ylim(bottom=0)
    elif panel.title in (PANELS["loss"], PANELS["mse"]) and min(values) > 0 and max(values) > LOGARITHMIC * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float], list[float], list[float]]:
    """At most ``POINTS`` points: the last step, the mean, the smallest and the largest value of each part."""
    count = min(POINTS, len(steps))
    ends = [round((part + 1) * len(steps) / count) for part in range(count)]
    parts = [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    at = [steps[end - 1] for end in ends]
    return at, [sum(part) / len(part) for part in parts], [min(part) for part in parts], [max(part) for part in parts]
