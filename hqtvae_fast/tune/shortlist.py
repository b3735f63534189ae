"""Which variants of a choice are tried first, and how many at all: a cost model orders them.

It knows a device's peaks, how a tile divides a map, and how many tiles a GPU's multiprocessors take at once; it is a
prediction, and decides nothing but the order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hqtvae_fast.backend import Backend
from hqtvae_fast.hardware import Device, floor_seconds
from hqtvae_fast.ops.spec import Spec
from hqtvae_fast.tune.sites import Site

MOST = 16
"""Of one choice, its default variant aside."""
EFFICIENCY = {"ours": 0.7, "library": 0.65, "reference": 0.3}
"""Share of a floor that is reached, before tiles are looked at. What stands for several operations of torch moves its
numbers several times."""
LAUNCH = 3e-6
"""Seconds that a call takes at least."""


def predicted(site: Site, backend: Backend, peaks: Device) -> float:
    """Seconds of a call."""
    assert site.cost is not None
    floor = floor_seconds(site.cost.flops, site.cost.bytes, peaks)
    return LAUNCH + floor / (EFFICIENCY[backend.source] * _use_of_tiles(site, backend.tile, peaks.multiprocessors))


def _use_of_tiles(site: Site, tile: Any, multiprocessors: int) -> float:
    """Share of a GPU's work that is not padding of tiles, nor waiting for the last ones."""
    rows, columns = getattr(tile, "rows", None), getattr(tile, "columns", None)
    shape = _product(site)
    if rows is None or columns is None or shape is None or not multiprocessors:
        return 1.0
    M, N = shape
    tiles = math.ceil(M / rows) * math.ceil(N / columns)
    programs = tiles * getattr(tile, "parts", 1)
    waves = math.ceil(programs / multiprocessors)
    return (M * N) / (tiles * rows * columns) * programs / (waves * multiprocessors)


def _product(site: Site) -> tuple[int, int] | None:
    """Rows and columns of what a tiled operation multiplies, where that and not reading is what it takes."""
    shapes = [part["shape"] for part in site.inputs if isinstance(part, Mapping)]
    if site.op in ("upsample_conv", "conv3x3"):
        (B, _, H, W), weight = shapes[:2]
        return B * H * W, weight[0]
    if site.op in ("draw_from_head", "quantized_linear"):
        return math.prod(shapes[0][:-1]), shapes[1][0]
    return None


def shortlist(site: Site, spec: Spec, peaks: Device, most: int = MOST) -> list[str]:
    """Challengers of the default variant, the most promising first."""
    others = [each for each in spec.backends if each.name in site.names and each.name != site.default]
    return [each.name for each in sorted(others, key=lambda each: predicted(site, each, peaks))[:most]]


def by_weight(sites: Sequence[Site], peaks: Device) -> list[Site]:
    """Choices in order of what they take at least: the first are worth the most."""

    def floor(site: Site) -> float:
        return 0.0 if site.cost is None else floor_seconds(site.cost.flops, site.cost.bytes, peaks)

    return sorted(sites, key=floor, reverse=True)
