"""What tuning would do, and what it found: rows of tables, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from hqtvae_fast.hardware import Device, floor_seconds
from hqtvae_fast.ops.spec import Spec
from hqtvae_fast.tune.proof import LARGE
from hqtvae_fast.tune.result import Found, Result
from hqtvae_fast.tune.shortlist import by_weight, shortlist
from hqtvae_fast.tune.sites import Site
from hqtvae_fast.tune.tuner import DUEL_SECONDS

START, COMPILE, FLOAT64, TRIALS = 6.0, 3.0, 2e10, 6
"""Of a prediction: seconds for a worker to start and for a kernel to compile; FLOP/s of float64 on a few cores; inputs
that a variant is proven from."""
WHOLE_RUNS = 12
"""Comparisons of whole runs a bucket."""


def _floor(site: Site, peaks: Device) -> float:
    return 0.0 if site.cost is None else floor_seconds(site.cost.flops, site.cost.bytes, peaks)


def candidate_rows(sites: Sequence[Site], specs: Mapping[str, Spec], peaks: Device) -> list[dict[str, Any]]:
    """Each choice with its candidates, the heaviest first; what cannot be tuned says why."""
    rows = []
    for site in by_weight(sites, peaks):
        names = shortlist(site, specs[site.op], peaks) if site.is_choice else []
        why = (
            "" if names else "not tuned: " + ("no spec's case has these inputs" if site.cost is None else "one variant")
        )
        floor = _floor(site, peaks) * 1e3
        rows.append({"choice": site.key, "default": site.default, "candidates": names, "floor_ms": floor, "why": why})
    return rows


def predicted_seconds(sites: Sequence[Site], specs: Mapping[str, Spec], peaks: Device, gpu: bool) -> dict[str, float]:
    """Of each stage, a prediction."""
    choices = [site for site in sites if site.is_choice]
    counts = {site.key: len(shortlist(site, specs[site.op], peaks)) for site in choices}
    prove = START
    for site in choices:
        assert site.cost is not None
        trials = 2 if site.cost.flops > LARGE else TRIALS
        prove += trials * site.cost.flops / FLOAT64 + (1 + counts[site.key]) * (COMPILE if gpu else 0.2)
    buckets = len({site.batch for site in sites})
    return {
        "prove": prove,
        "time": START + sum(counts.values()) * DUEL_SECONDS,
        "confirm": START + buckets * WHOLE_RUNS * (10.0 if gpu else 4.0),
    }


def result_rows(result: Result, peaks: Device) -> list[dict[str, Any]]:
    """Each choice that was timed: what was chosen, its milliseconds and the default's, the share of the floor that it
    reaches, whether its bits are the default's, and whether whole runs confirmed it."""
    return [_row(found, result, peaks) for found in result.found if found.duels]


def _row(found: Found, result: Result, peaks: Device) -> dict[str, Any]:
    site, kept = found.site, result.choices.get(found.site.key)
    some = next(iter(found.duels.values()))
    incumbent = median(some.incumbent) * 1e3
    chosen = site.default if kept is None else kept.variant
    ms = incumbent if kept is None or kept.median is None else kept.median / 1e3
    won = found.chosen is not None and found.chosen.duel is not None
    return {
        "choice": site.key,
        "chosen": chosen,
        "ms": ms,
        "incumbent": site.default,
        "incumbent_ms": incumbent,
        "share_of_floor": _floor(site, peaks) * 1e3 / ms,
        "same_bits": True if kept is None else bool(kept.same_bits),
        "note": "faster alone, not in whole runs" if won and kept is None else "",
    }
