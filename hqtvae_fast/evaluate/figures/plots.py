"""Figures with axes: use of codes, and speed against quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hqtvae_fast.config import level_names
from hqtvae_fast.files import parse_json, read_text
from hqtvae_fast.pictures.plots import COLOURS, INK, draw
from hqtvae_fast.train.codes.usage import perplexity

# --------------------------------------------------------------------------------------------------------------- usage


def usage_plot(counts: Sequence[Tensor]) -> bytes:
    """How often each code was chosen, a panel for each level: codes sorted from most to least used, as multiples of
    equal use; log scale. Codes never chosen are missing on the right."""

    def plot(axes: list[Any]) -> None:
        for level, (own, panel) in enumerate(zip(counts, axes, strict=True)):
            _usage_panel(panel, own, level, len(counts))
        axes[0].set_ylabel("use, as a multiple of equal use")

    return draw(plot, (3.6 * len(counts) + 0.4, 3.4), columns=len(counts), share_y=True)


def _usage_panel(panel: Any, counts: Tensor, level: int, levels: int) -> None:
    used = counts[counts > 0].sort(descending=True).values.double()
    if len(used) == 0:
        raise ValueError("expected codes that were chosen; got none")
    relative = (used / counts.sum() * len(counts)).tolist()
    panel.fill_between(range(1, len(used) + 1), relative, color=COLOURS[level % len(COLOURS)], alpha=0.85, linewidth=0)
    panel.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    name = level_names(levels)[level]
    share = len(used) / len(counts)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set(
        xlim=(1, len(counts)),
        xlabel=f"codes of {len(counts):,}, most used first",
        title=f"{name}: {share:.1%} used, perplexity {float(perplexity(counts)):,.0f}",
    )


# ------------------------------------------------------------------------------------------------------ speed, quality


@dataclass(frozen=True)
class Point:
    """``speed`` in images/s; ``quality``: the metric called ``metric``, of ``of``."""

    label: str
    speed: float
    quality: float
    metric: str
    better: str
    of: str = ""


def read_point(text: str, key: str) -> Point:
    """``LABEL=EVALUATION.json,SPEED``: what `hqtvae evaluate --out` wrote, and images/s as a number or as the fastest
    whole run of ours in a results file of `hqtvae bench generate`. ``key``: which metric."""
    label, equals, rest = text.partition("=")
    file, comma, speed = rest.rpartition(",")
    if not (label and equals and file and comma and speed):
        raise ValueError(f"expected LABEL=EVALUATION.json,SPEED; got {text!r}")
    evaluation = _read(Path(file), "kind", "evaluation")
    metric = evaluation["metrics"].get(key)
    if metric is None:
        raise ValueError(f"{file}: expected a metric {key}; it has {', '.join(evaluation['metrics'])}")
    if metric["value"] is None:
        raise ValueError(f"{file}: {key}: expected a finite number; got none")
    return Point(label, _speed(speed), metric["value"], metric["name"], metric["better"], metric.get("of", ""))


def _speed(text: str) -> float:
    if text.endswith(".json"):
        rows = _read(Path(text), "benchmark", "generate")["rows"]
        rates = [row["work"]["images"] / row["median"] for row in rows if _whole(row)]
        if not rates:
            raise ValueError(f"{text}: expected a row of ours with part 'total' that may be quoted; found none")
        return max(rates)
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise ValueError(f"expected images/s, above 0, or a results file (.json); got {text!r}")
    return speed


def _whole(row: dict[str, Any]) -> bool:
    return bool(row["ours"]) and row["work"].get("part") == "total" and row.get("unfit") is None


def _read(file: Path, field: str, wanted: str) -> dict[str, Any]:
    try:
        document = parse_json(read_text(file), file)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    if not isinstance(document, dict) or document.get(field) != wanted:
        got = document.get(field) if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"{file}: expected {field} {wanted!r}; got {got!r}")
    return document


def speed_plot(points: Sequence[Point]) -> bytes:
    """A scatter of quality over speed, both better towards the corner that the axes' arrows point to."""
    metrics = {(point.metric, point.better) for point in points}
    if len(metrics) != 1:
        raise ValueError(
            f"expected points of one metric; got {', '.join(sorted(name for name, _ in metrics)) or 'none'}"
        )
    ((metric, better),) = metrics

    def plot(panels: list[Any]) -> None:
        axes = panels[0]
        axes.grid(True, linewidth=0.6)
        axes.set_axisbelow(True)
        middle = (max(point.speed for point in points) + min(point.speed for point in points)) / 2
        for number, point in enumerate(points):
            axes.scatter(point.speed, point.quality, s=46, color=COLOURS[number % len(COLOURS)], zorder=3)
            side = "right" if point.speed > middle else "left"  # so that names stay on the page
            place = (-7 if side == "right" else 7, 5)
            at = (point.speed, point.quality)
            axes.annotate(point.label, at, place, textcoords="offset points", fontsize=9, ha=side)
        if max(point.speed for point in points) > 20 * min(point.speed for point in points):
            axes.set_xscale("log")
        axes.margins(0.18)
        arrow = "lower is better ↓" if better == "lower" else "higher is better ↑"
        axes.set(xlabel="images/s (more is better →)", ylabel=f"{metric}\n({arrow})")
        if len(described := {point.of for point in points}) == 1:
            axes.set_title(described.pop(), fontsize=9)

    return draw(plot, (6.4, 4.2))
