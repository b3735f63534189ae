"""The composed set: a thing, small or large, or two side by side, in a style, on a background of a named colour.

Some pairs are never shown: a thing with a background (two of the eleven that are not white, for each thing), with a
style (one of three, for every other thing), and with another thing (a fifth of all pairs). A composition with any such
pair is held out. Which pairs these are is decided by ranks of hashes of their names, so that every thing, and each
style as nearly as can be, is held out as often as the others; and so that they stay the same from build to build. Every
thing is shown on white, which is where a prompt without a background is drawn.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from emoji_set.things import COLOURS, FACING, STYLES, THINGS

Size = Literal["small", "large", "pair"]
Pair = tuple[str, str]

LARGE, SMALL = 5 / 6, 5 / 12  # long side of a thing, of the picture's side: the border is background
PLAIN = "white"
_BACKGROUNDS_HELD = 2  # of each thing
_STYLES_HELD_ONE_IN = 2  # things
_THINGS_HELD_ONE_IN = 5  # pairs
_PICTURES_A_PAIR = 2  # of two things; all styles and backgrounds of each would be nine in ten pictures


@dataclass(frozen=True)
class Composition:
    """A picture to be drawn: one thing, or the left and the right one."""

    things: tuple[str, ...]
    style: str
    background: str
    size: Size
    mirrored: bool = False

    @property
    def key(self) -> str:
        names = "+".join(name.replace(" ", "_") for name in self.things)
        return f"{self.style}-{names}-{self.background}-{self.size}{'-mirrored' * self.mirrored}"

    @property
    def facing(self) -> str | None:
        """Where the thing looks; None for one that looks ahead, and for two."""
        side = FACING.get(self.things[0]) if len(self.things) == 1 else None
        if side is None or not self.mirrored:
            return side
        return {"left": "right", "right": "left"}[side]

    def captions(self) -> tuple[str, ...]:
        """Several wordings, the plainest first, which evaluation takes."""
        style, colour = STYLES[self.style], self.background
        how = "small " * (self.size == "small")
        where = "" if self.facing is None else f" facing {self.facing}"
        what, beside = (f"{how}{word.join(self.things)}{where}" for word in (" and ", " next to "))
        said = [
            f"{what}, {style}, on {colour}",
            f"{what}, {style}, {colour} background",
            f"{style} {beside} on {'an' if colour[0] in 'aeiou' else 'a'} {colour} background",
            f"{what} on {colour}, {style}",
        ]
        if colour == PLAIN:
            said[1] = f"{what}, {style}"
        if self.facing is not None and not self.mirrored:  # as the thing looks unless somebody says otherwise
            said.append(said[0].replace(where, ""))
        return tuple(said)


@dataclass(frozen=True)
class HeldPairs:
    """The pairs that are never shown."""

    backgrounds: frozenset[Pair] = field(default_factory=frozenset)
    styles: frozenset[Pair] = field(default_factory=frozenset)
    things: frozenset[Pair] = field(default_factory=frozenset)
    """Each in alphabetical order."""

    def of(self, one: Composition) -> tuple[str, ...]:
        """The kinds of held-out pairs in a composition: ``background``, ``style``, ``things``; none if it is shown."""
        kinds = {
            "background": any((thing, one.background) in self.backgrounds for thing in one.things),
            "style": any((thing, one.style) in self.styles for thing in one.things),
            "things": len(one.things) == 2 and _ordered(*one.things) in self.things,
        }
        return tuple(kind for kind, held in kinds.items() if held)


def hold_out(things: Sequence[str] = THINGS) -> HeldPairs:
    backgrounds, styles = [], []
    colours = [name for name in COLOURS if name != PLAIN]
    for thing in things:
        ranked = _ranked((thing, colour) for colour in colours)
        backgrounds += ranked[:_BACKGROUNDS_HELD]
    chosen = _ranked((thing, "style") for thing in things)[: len(things) // _STYLES_HELD_ONE_IN]
    for (thing, _), style in zip(
        chosen, itertools.cycle(STYLES), strict=False
    ):  # in turns, so that each style is held as often
        styles.append((thing, style))
    pairs = _ranked(_ordered(*pair) for pair in itertools.combinations(things, 2))
    return HeldPairs(frozenset(backgrounds), frozenset(styles), frozenset(pairs[: len(pairs) // _THINGS_HELD_ONE_IN]))


def compositions(things: Sequence[str] = THINGS, held: HeldPairs | None = None) -> Iterator[Composition]:
    """All compositions of one thing, and some of every two."""
    held = hold_out(things) if held is None else held
    for thing, style, colour, size in itertools.product(things, STYLES, COLOURS, ("small", "large")):
        yield Composition((thing,), style, colour, size)
        if thing in FACING:
            yield Composition((thing,), style, colour, size, mirrored=True)
    for pair in itertools.combinations(things, 2):
        yield from _of_two(pair, held)


def _of_two(pair: Pair, held: HeldPairs) -> Iterator[Composition]:
    """The first few in the order of their hashes, of those in which nothing but the two things is held out."""
    found = []
    for order, style, colour in itertools.product((pair, pair[::-1]), STYLES, COLOURS):
        one = Composition(order, style, colour, "pair")
        if set(held.of(one)) <= {"things"}:
            found.append(one)
    found.sort(key=lambda one: _digest(one.key))
    yield from found[:_PICTURES_A_PAIR]


def draw(one: Composition, pictures: Sequence[Image.Image], side: int) -> Image.Image:
    """RGB [side, side]. ``pictures``: RGBA, of the composition's things."""
    ground = Image.new("RGB", (side, side), COLOURS[one.background])
    box = round(side * (LARGE if one.size == "large" else SMALL))
    for place, picture in enumerate(pictures, start=1):
        thing = picture.crop(picture.getchannel("A").getbbox())
        if one.mirrored:
            thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scale = box / max(thing.size)
        thing = thing.resize(tuple(max(1, round(length * scale)) for length in thing.size), Image.Resampling.LANCZOS)
        middle = side * (2 * place - 1) / (2 * len(pictures))
        ground.paste(thing, (round(middle - thing.width / 2), round((side - thing.height) / 2)), thing)
    return ground


def _ordered(one: str, other: str) -> Pair:
    return (one, other) if one <= other else (other, one)


def _ranked(pairs: Iterator[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: _digest("+".join(pair)))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
