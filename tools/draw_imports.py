"""Draws the picture of hqtvae_fast's imports: ``python tools/draw_imports.py`` writes docs/imports.svg.

Fails, and draws nothing, where an import runs upwards or in a circle. The same imports give the same file.
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from layers import GROUND, LAYERS, Box, Import, box_of, circles, imports, part, wrong  # beside this file

OUT = Path(__file__).parents[1] / "docs" / "imports.svg"
WAY = ("cli", "pipeline", "engine", "model", "ops", "backend")  # of an image: always drawn, in the accent
STEPS = set(pairwise(WAY))
MANY = (4, 20)  # imports from which an arrow is thicker, and thicker still

WIDTH, MARGIN = 900, 24
BOX, GUTTER = (252, 50), 48
PITCH = 84  # from one row of boxes to the next
ACCENT, INK, SOFT, LINE, PANEL = "#0b62c4", "#1c2430", "#5b6675", "#98a2b0", "#f1f4f8"


class Place(NamedTuple):
    """A box on the page, in pixels."""

    row: int
    column: int
    x: float
    y: float
    wide: float = BOX[0]
    high: float = BOX[1]

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.wide / 2, self.y + self.high / 2


def arrows(found: list[Import]) -> dict[tuple[str, str], tuple[int, bool]]:
    """Of each pair of boxes how many imports there are, and whether all are late."""
    number: Counter[tuple[str, str]] = Counter()
    at_once: set[tuple[str, str]] = set()
    for one in found:
        pair = box_of(part(one.source)).name, box_of(part(one.target)).name
        if pair[0] != pair[1]:
            number[pair] += 1
            if not one.late:
                at_once.add(pair)
    return {pair: (count, pair not in at_once) for pair, count in sorted(number.items())}


def drawn(pairs: dict[tuple[str, str], tuple[int, bool]]) -> list[tuple[str, str]]:
    """Those of an image's way, and those that no longer way says; the frame stands for arrows to the ground."""
    ground = {box.name for layer in LAYERS[-GROUND:] for box in layer}
    above = [pair for pair in pairs if pair[1] not in ground]

    def reaches(start: str, end: str) -> bool:
        return any(one == start and (other == end or reaches(other, end)) for one, other in above)

    def longer(start: str, end: str) -> bool:
        return any(one == start and other != end and reaches(other, end) for one, other in above)

    return [pair for pair in pairs if pair in STEPS or (pair in above and not longer(*pair))]


def places() -> dict[str, Place]:
    found = {}
    for row, layer in enumerate(LAYERS):
        for box in layer:
            x = MARGIN + box.column * (BOX[0] + GUTTER)
            found[box.name] = Place(row, box.column, x, MARGIN + row * PITCH)
    for layer, lift in zip(LAYERS[-GROUND:], (-8, 12), strict=True):  # room for the frame's title above its first row
        for box in layer:
            found[box.name] = found[box.name]._replace(y=found[box.name].y - lift)
    lowest = LAYERS[-1][0].name  # lies under the whole row above it
    found[lowest] = found[lowest]._replace(x=MARGIN, wide=WIDTH - 2 * MARGIN)
    return found


def route(source: Place, target: Place, taken: set[tuple[int, int]]) -> list[tuple[float, float]]:
    """Corners of an arrow: straight down, or by one corner round the boxes, or aslant where both corners are taken."""
    (x0, y0), (x1, y1) = source.middle, target.middle
    if source.column == target.column:
        return [(x0, source.y + source.high), (x1, target.y)]
    right = target.column > source.column
    if (source.row, target.column) not in taken:  # out at the side, in at the top, a little towards the source
        aside = x1 if source.column == 1 else x1 + (-60 if right else 60)
        return [(source.x + source.wide if right else source.x, y0), (aside, y0), (aside, target.y)]
    if (target.row, source.column) not in taken:
        return [(x0, source.y + source.high), (x0, y1), (target.x if right else target.x + target.wide, y1)]
    inset = 36
    start = source.x + source.wide - inset if right else source.x + inset
    end = target.x + inset if right else target.x + target.wide - inset
    return [(start, source.y + source.high), (end, target.y)]


def arrow(points: list[tuple[float, float]], count: int, late: bool, accent: bool) -> str:
    """A line with a head. Its width says how many imports there are; dashes, that all are late."""
    (x0, y0), (x1, y1) = points[-2:]
    long = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    back = ((x1 - x0) / long, (y1 - y0) / long)
    tip, base = (x1 - 3 * back[0], y1 - 3 * back[1]), (x1 - 12 * back[0], y1 - 12 * back[1])
    sides = [(base[0] + sign * 5 * back[1], base[1] - sign * 5 * back[0]) for sign in (1, -1)]
    colour = ACCENT if accent else LINE
    width = (1.4, 2.4, 4.0)[sum(count >= many for many in MANY)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*points[:-1], base])
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in [tip, *sides])
    dashes = ' stroke-dasharray="6 5"' if late else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-linejoin="round"{dashes}/><polygon points="{head}" fill="{colour}"/>'
    )


def text(x: float, y: float, words: str, size: float, colour: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{more}>{words}</text>'


def drawn_box(box: Box, place: Place) -> str:
    accent = box.name in WAY
    x, y = place.middle
    middle = ' text-anchor="middle"'
    return "".join(
        (
            f'<rect x="{place.x:g}" y="{place.y:g}" width="{place.wide:g}" height="{place.high:g}" rx="7" '
            f'fill="white" stroke="{ACCENT if accent else LINE}" stroke-width="{2 if accent else 1.4}"/>',
            text(x, y - 4, box.name, 16, ACCENT if accent else INK, middle + ' font-weight="bold"'),
            text(x, y + 15, box.says, 12.5, SOFT, middle),
        )
    )


def legend(x: float, y: float) -> list[str]:
    rows = (
        (2, False, True, "the way of an image"),
        (MANY[0] - 1, False, False, f"fewer than {MANY[0]} imports"),
        (MANY[1] - 1, False, False, f"fewer than {MANY[1]}"),
        (MANY[1], False, False, f"{MANY[1]} or more"),
        (2, True, False, "inside functions, for types"),
    )
    lines = []
    for row, (count, late, accent, words) in enumerate(rows):
        at = y + 25 * row
        lines += [arrow([(x, at), (x + 52, at)], count, late, accent), text(x + 66, at + 4.5, words, 12.5, SOFT)]
    notes = ("Not drawn: arrows that a longer way", "says already, and those to the ground.")
    return lines + [text(x, y + 25 * len(rows) + 12 + 18 * row, words, 12.5, SOFT) for row, words in enumerate(notes)]


def picture(found: list[Import]) -> str:
    pairs, where = arrows(found), places()
    taken = {(place.row, place.column) for place in where.values()}
    top, floor = where[LAYERS[-GROUND][0].name].y - 30, where[LAYERS[-1][0].name]
    height = floor.y + floor.high + MARGIN
    shown = sorted(drawn(pairs), key=lambda pair: pair in STEPS)  # the way lies on top
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f'height="{height:g}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif">',
            "<title>Imports of hqtvae_fast: from above to below, never back</title>",
            "<!-- written by tools/draw_imports.py from the package's files -->",
            "<metadata>",
            *(
                f"{one} imports {other}{', inside functions or for types only' if late else ''}"
                for (one, other), (_, late) in pairs.items()
            ),
            "</metadata>",
            f'<rect width="{WIDTH}" height="{height:g}" fill="white"/>',
            f'<rect x="{MARGIN - 12}" y="{top:g}" width="{WIDTH - 2 * MARGIN + 24}" '
            f'height="{floor.y + floor.high - top + 12:g}" rx="10" fill="{PANEL}"/>',
            text(MARGIN + 2, top + 20, "the ground, which all may import", 12.5, SOFT),
            *(arrow(route(where[a], where[b], taken), *pairs[a, b], (a, b) in STEPS) for a, b in shown),
            *(drawn_box(box, where[box.name]) for layer in LAYERS for box in layer),
            *legend(where["distributed"].x + 4, where["engine"].y + 10),
            "</svg>\n",
        ]
    )


def main() -> None:
    found = imports()
    faults = wrong(found) + circles(found)
    if faults:
        sys.exit("\n".join(faults))
    OUT.write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
