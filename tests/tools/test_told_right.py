"""What counts as right in a drawn composition, on planted pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from emoji_set.compositions import Composition, draw
from emoji_set.things import COLOURS
from PIL import Image
from told_right import References, backgrounds_right, things_right

THINGS = ("fox", "owl", "bear", "lion", "frog", "crab", "key", "rose", "house", "bell")


def fields(one: Composition) -> dict:
    return {"things": list(one.things), "background": one.background, "size": one.size}


@pytest.fixture(scope="module")
def planted():
    """Pictures of ten things, each an even colour of its own, and what they show."""
    palette = np.random.default_rng(0).integers(0, 256, (len(THINGS), 3))
    icons = {name: Image.new("RGBA", (8, 8), (*map(int, c), 255)) for name, c in zip(THINGS, palette, strict=True)}
    every = [
        Composition((thing,), "noto", colour, size)
        for thing in THINGS
        for colour in ("red", "white")
        for size in ("small", "large")
    ]
    every += [Composition((THINGS[i], THINGS[i - 1]), "noto", "red", "pair") for i in range(len(THINGS))]
    drawn = [np.array(draw(one, [icons[thing] for thing in one.things], 48)) for one in every]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous(), [fields(one) for one in every]


def extract(pixels: torch.Tensor) -> torch.Tensor:
    """A thing's colour as features."""
    side = pixels.shape[-1]
    middle = pixels[:, :, side // 3 : -side // 3, side // 3 : -side // 3].float() - 127.5
    return torch.cat([middle.mean(dim=(2, 3)), torch.full((len(pixels), 1), 60.0)], dim=1)


def test_the_references_themselves_are_right(planted) -> None:
    pixels, shown = planted
    assert bool(things_right(pixels, shown, References.of(pixels, shown, extract)).all())
    assert bool(backgrounds_right(pixels, shown).all())


def test_shuffled_prompts_are_right_by_chance_alone(planted) -> None:
    pixels, shown = planted
    references = References.of(pixels, shown, extract)
    single = [index for index, one in enumerate(shown) if one["size"] != "pair"]
    rights = []
    for shift in range(len(THINGS)):
        asked = [
            {**shown[index], "things": [THINGS[(THINGS.index(shown[index]["things"][0]) + shift) % len(THINGS)]]}
            for index in single
        ]
        rights.append(float(things_right(pixels[single], asked, references).float().mean()))
    assert rights == [1.0] + [0.0] * 9
    assert sum(rights) / len(rights) == pytest.approx(1 / len(THINGS))


def test_two_things_in_the_wrong_order_or_one_alone_are_wrong(planted) -> None:
    pixels, shown = planted
    references, last = References.of(pixels, shown, extract), len(shown) - 1
    for things in (shown[last]["things"][::-1], [shown[last]["things"][0]] * 2):
        assert not bool(things_right(pixels[last:], [{**shown[last], "things": things}], references))


def test_another_background_or_a_spotted_one_is_wrong(planted) -> None:
    pixels, shown = planted
    others = [{**one, "background": "teal"} for one in shown]
    assert not bool(backgrounds_right(pixels, others).any())
    spotted = pixels.clone()
    spotted[:, :, :2, :24] = 127  # an eighth of the border
    assert not bool(backgrounds_right(spotted, shown).any())
    noisy = (pixels.int() + torch.randint(-20, 21, pixels.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 255
    )
    assert bool(backgrounds_right(noisy.to(torch.uint8), shown).all())
    for index, colour in enumerate(COLOURS.values()):
        plain = torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
        assert bool(backgrounds_right(plain, [{"background": list(COLOURS)[index]}]))


def test_a_background_without_references_is_refused(planted) -> None:
    pixels, shown = planted
    references = References.of(pixels, shown, extract)
    with pytest.raises(ValueError, match="expected some on teal, large; got none"):
        references.nearest(pixels[0], {"things": ["fox"], "background": "teal", "size": "large"})
