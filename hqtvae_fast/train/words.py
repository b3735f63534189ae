"""What a run's figures say, in words that need no manual: for bars, lines, pages and what is said at the end."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rich.console import Console

from hqtvae_fast.config import level_names
from hqtvae_fast.world import world

HELD_OUT = "val_"  # what the names of held-out figures begin with


def say(line: str) -> None:
    """A line on stderr, of the main process alone."""
    if world().rank == 0:
        Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)


def in_words(metrics: Mapping[str, float]) -> list[str]:
    """Of a record of ``losses.jsonl``, or of one update: ``["loss 0.0123", "PSNR 21.3 dB", "codes in use: 83% top, 61%
    bottom"]``; of stage 2 also ``"nats a code: 2.10 top, 3.41 bottom"``. What is not there is left out."""
    told = [f"loss {metrics['loss']:.4g}"] if "loss" in metrics else []
    if "psnr" in metrics:
        told.append(f"PSNR {metrics['psnr']:.1f} dB")
    if usage := by_level(metrics, "usage"):
        told.append(f"codes in use: {_listed([percent(share) for share in usage])}")
    if levels := by_level(metrics, "level"):
        told.append(f"nats a code: {_listed([f'{nats:.2f}' for nats in levels])}")
    if "text" in metrics:
        told.append(f"nats a token of text: {metrics['text']:.2f}")
    return told


def held_out(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures of held-out pictures among others, by the names that those of training have."""
    return {name[len(HELD_OUT) :]: value for name, value in metrics.items() if name.startswith(HELD_OUT)}


def by_level(metrics: Mapping[str, float], name: str) -> list[float]:
    """``name_0``, ``name_1``, ..., top first."""
    found = [key for key in metrics if re.fullmatch(rf"{name}_\d+", key)]
    return [metrics[key] for key in sorted(found, key=lambda key: int(key.rpartition("_")[2]))]


def duration(seconds: float) -> str:
    """About how long, to two digits: 40 seconds, 6 minutes, 2.5 hours, 12 days."""
    for size, unit, form in ((1, "second", ",.0f"), (60, "minute", ".0f"), (3600, "hour", ".1f")):
        if seconds < {"second": 90, "minute": 90 * 60, "hour": 36 * 3600}[unit]:
            number = format(seconds / size, form)
            return f"{number} {unit}" if number == "1" else f"{number} {unit}s"
    return f"{seconds / 86400:,.0f} days"


def speed(images_per_second: float) -> str:
    number = f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.2g}"
    return f"{number} images/s"


def _listed(values: list[str]) -> str:
    if len(values) == 1:
        return values[0]
    return ", ".join(f"{value} {name}" for value, name in zip(values, level_names(len(values)), strict=True))


def percent(share: float) -> str:
    """100% only of all, and 0% only of none."""
    percent = 100 * share
    if 0 < percent < 1 or 99.5 <= percent < 100:
        return f"{min(max(percent, 0.1), 99.9):.1f}%"
    return f"{percent:.0f}%"
