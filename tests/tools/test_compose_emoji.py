"""The composed set: what its pictures and captions say, and what is never shown."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from emoji_set import BuildError, compositions, shards
from emoji_set.compositions import Composition, HeldPairs, hold_out
from emoji_set.names import Emoji
from emoji_set.sheet import contact_sheet
from emoji_set.styles import Style
from emoji_set.things import COLOURS, FACING, STYLES, THINGS

from hqtvae_fast.train.data import PLAIN, open_source

LEFT_IS_RED = Image.new("RGBA", (8, 4), (0, 0, 255, 255))
LEFT_IS_RED.paste((255, 0, 0, 255), (0, 0, 4, 4))
PADDED = Image.new("RGBA", (24, 20))
PADDED.paste(LEFT_IS_RED, (3, 9))


@pytest.fixture(scope="module")
def every() -> list[Composition]:
    return list(compositions.compositions())


def test_at_least_fifteen_in_a_hundred_pairs_are_never_shown(every: list[Composition]) -> None:
    held = hold_out()
    shown = [one for one in every if not held.of(one)]
    pairs = {
        "background": {(thing, one.background) for one in shown for thing in one.things},
        "style": {(thing, one.style) for one in shown for thing in one.things},
        "things": {tuple(sorted(one.things)) for one in shown if len(one.things) == 2},
    }
    every_pair = {
        "background": set(itertools.product(THINGS, COLOURS)),
        "style": set(itertools.product(THINGS, STYLES)),
        "things": set(itertools.combinations(sorted(THINGS), 2)),
    }
    for kind, there in every_pair.items():
        assert pairs[kind] <= there
        assert 0.15 <= 1 - len(pairs[kind]) / len(there) < 0.25, kind
    assert all((thing, "white") in pairs["background"] for thing in THINGS)  # drawn where no background is named
    styles_of = Counter(thing for thing, _ in pairs["style"])
    assert Counter(styles_of.values()) == {2: len(THINGS) // 2, 3: len(THINGS) // 2}
    assert max(Counter(style for _, style in held.styles).values()) <= 1 + len(held.styles) // 3


def test_what_is_held_out_stays_so() -> None:
    # Were this to change, val would hold what a published model was trained on.
    held = hold_out()
    assert [colour for thing, colour in sorted(held.backgrounds) if thing == "tiger face"] == ["black", "blue"]
    assert {("alarm clock", "noto"), ("cactus", "fluent"), ("owl", "twemoji")} <= held.styles
    assert ("frog", "tiger face") in held.things


def test_each_composition_is_there_once_and_each_thing_often(every: list[Composition]) -> None:
    assert len({one.key for one in every}) == len(every)
    held = hold_out()
    shown = Counter(thing for one in every if not held.of(one) for thing in one.things)
    assert set(shown) == set(THINGS)
    assert 140 < min(shown.values()) <= max(shown.values()) < 260
    assert len(set(THINGS)) == len(THINGS)
    assert set(FACING) <= set(THINGS)


def test_colours_can_be_told_apart() -> None:
    for one, other in itertools.combinations(COLOURS.values(), 2):
        assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) >= 75**2


@pytest.mark.parametrize(
    "one, wanted",
    [
        (
            Composition(("fox",), "fluent", "blue", "large"),
            ("fox, 3d, on blue", "fox, 3d, blue background", "3d fox on a blue background", "fox on blue, 3d"),
        ),
        (
            Composition(("fox",), "noto", "white", "small"),
            ("small fox, shaded, on white", "small fox, shaded", "shaded small fox on a white background",
             "small fox on white, shaded"),
        ),
        (
            Composition(("whale",), "twemoji", "red", "large", mirrored=True),
            ("whale facing right, flat, on red", "whale facing right, flat, red background",
             "flat whale facing right on a red background", "whale facing right on red, flat"),
        ),
        (
            Composition(("rocket",), "twemoji", "red", "large"),
            ("rocket facing right, flat, on red", "rocket facing right, flat, red background",
             "flat rocket facing right on a red background", "rocket facing right on red, flat",
             "rocket, flat, on red"),
        ),
        (
            Composition(("whale", "fox"), "twemoji", "red", "pair"),
            ("whale and fox, flat, on red", "whale and fox, flat, red background",
             "flat whale next to fox on a red background", "whale and fox on red, flat"),
        ),
        (
            Composition(("fox",), "twemoji", "orange", "small"),
            ("small fox, flat, on orange", "small fox, flat, orange background",
             "flat small fox on an orange background", "small fox on orange, flat"),
        ),
    ],
)  # fmt: skip
def test_captions(one: Composition, wanted: tuple[str, ...]) -> None:
    assert one.captions() == wanted


def test_captions_tell_compositions_apart(every: list[Composition]) -> None:
    said = Counter(caption for one in every for caption in set(one.captions()))
    assert set(said.values()) == {1}


@pytest.mark.parametrize("size, long", [("large", 40), ("small", 20)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_thing_lies_in_the_middle_of_its_background(size, long, mirrored) -> None:
    picture = compositions.draw(Composition(("fox",), "noto", "teal", size, mirrored), [PADDED], 48)
    assert (picture.mode, picture.size) == ("RGB", (48, 48))
    across = [picture.getpixel((x, 24)) for x in range(48)]
    margin = (48 - long) // 2
    assert set(across[:margin]) == set(across[-margin:]) == {COLOURS["teal"]}
    assert (across[margin + 2][0] > 200) != mirrored
    assert (across[-margin - 3][0] > 200) == mirrored
    down = [picture.getpixel((20, y)) for y in range(48)]
    assert sum(pixel != COLOURS["teal"] for pixel in down) == long // 2


def test_two_things_lie_side_by_side_in_order() -> None:
    red, blue = (Image.new("RGBA", (8, 8), colour) for colour in ("red", "blue"))
    picture = compositions.draw(Composition(("fox", "owl"), "noto", "white", "pair"), [red, blue], 48)
    row = [picture.getpixel((x, 24)) for x in (0, 12, 24, 36, 47)]
    assert row == [(255,) * 3, (255, 0, 0), (255,) * 3, (0, 0, 255), (255,) * 3]


def test_soft_edges_take_the_background_without_a_dark_rim() -> None:
    disc = Image.new("RGBA", (8, 8), (0, 0, 0, 0))  # black where nothing is
    disc.paste((255, 255, 255, 255), (1, 1, 7, 7))
    disc.putpixel((0, 0), (255, 255, 255, 1))
    disc.putpixel((7, 7), (255, 255, 255, 1))
    picture = compositions.draw(Composition(("fox",), "noto", "white", "large"), [disc], 48)
    assert picture.convert("L").getextrema()[0] > 250


def fox_and_owl(style: str) -> Style:
    colours = {"fox": "orange", "owl": "brown"}
    return Style(style, "MIT", lambda one: Image.new("RGBA", (8, 8), colours[one.name]))


EMOJI = {name: Emoji(("1F98A",), name, "Animals", "mammal") for name in ("fox", "owl")}


def test_the_trainer_reads_the_shards_with_every_wording(tmp_path: Path) -> None:
    held = HeldPairs(styles=frozenset({("fox", "noto")}), things=frozenset({("fox", "owl")}))
    every = list(compositions.compositions(("fox", "owl"), held))
    samples = shards.make_composed(every, EMOJI, [fox_and_owl(style) for style in STYLES], 24, held)
    counts = shards.write_shards(samples, tmp_path, 24, "composed")
    assert sum(counts["train"].values()) == 5 * 12 * 2
    assert sum(counts["val"].values()) == 12 * 2 + 2
    source = open_source(str(tmp_path / "composed-24-train.tar"))
    fields = source.fields(0)
    assert (fields["things"], fields["size"], fields["held_out"]) == (["fox"], "small", [])
    assert list(PLAIN.every(fields)) == fields["caption"] == list(every[0].captions())
    picture = Image.open(io.BytesIO(source.picture(0))).convert("RGB")
    assert picture.getpixel((0, 0)) == COLOURS[fields["background"]]  # lossless
    kinds = Counter(tuple(open_source(str(tmp_path / "composed-24-val.tar")).fields(i)["held_out"]) for i in range(26))
    assert kinds == {("style",): 24, ("things",): 2}
    assert contact_sheet(tmp_path / "composed-24-val.tar", rows=2, columns=3, side=40).size == (124, 108)


def test_a_thing_without_a_picture_is_named() -> None:
    wanted = [Composition(("fox",), "noto", "red", "large")]
    with pytest.raises(BuildError, match="fox: expected a picture in the style noto"):
        list(shards.make_composed(wanted, EMOJI, [fox_and_owl("fluent")], 24, HeldPairs()))
    with pytest.raises(BuildError, match="fox: expected a picture in the style noto"):
        list(shards.make_composed(wanted, {}, [fox_and_owl("noto")], 24, HeldPairs()))
    assert json.loads(next(shards.make_composed(wanted, EMOJI, [fox_and_owl("noto")], 24, HeldPairs())).json)
