"""Sheets of a run: what is on them, and what stands beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hqtvae_fast.pictures.images import enlarge, to_pil
from hqtvae_fast.pictures.sheet import Cell, Row, Sheet
from hqtvae_fast.train.shown import sheets
from hqtvae_fast.train.shown.sheets import drawn_sheet, reconstruction_sheet


@pytest.fixture
def drawn(monkeypatch) -> list[Sheet]:
    """The sheets that were drawn."""
    made: list[Sheet] = []
    draw = Sheet.draw
    monkeypatch.setattr(Sheet, "draw", lambda self: made.append(self) or draw(self))
    return made


def pictures(count: int, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def test_reconstructions_stand_below_their_pictures_with_their_psnr(drawn):
    images = pictures(3) * 2 - 1
    rebuilt = (images + 0.2).clamp(-1, 1)
    sheet = reconstruction_sheet(images, rebuilt, ["cat", "food", "food"], "held out")
    above, below = drawn[0].rows
    assert [cell.caption for cell in above.cells] == ["cat", "food", "food"]
    assert above.name == "held out"
    assert all(cell.caption.endswith(" dB") for cell in below.cells)
    values = [float(cell.caption.split()[0]) for cell in below.cells]
    assert below.name == f"rebuilt\n{float(np.mean(values)):.1f} dB on average"
    assert [cell.image.tobytes() for cell in above.cells] == [own.tobytes() for own in to_pil(images / 2 + 0.5)]
    assert sheet.width >= 3 * sheets.SIDE


def test_few_subjects_have_a_row_each(drawn):
    drawn_sheet(["food", "a very long caption of one of the held-out pictures"], to_pil(pictures(8)))
    assert [len(row.cells) for row in drawn[0].rows] == [4, 4]
    assert drawn[0].rows[0].name == "food"
    assert max(map(len, drawn[0].rows[1].name.split("\n"))) <= 20


def test_many_subjects_have_a_place_each(drawn):
    drawn_sheet([f"class {label}" for label in range(10)], to_pil(pictures(10)))
    assert [len(row.cells) for row in drawn[0].rows] == [4, 4, 2]
    assert [cell.caption for row in drawn[0].rows for cell in row.cells] == [f"class {label}" for label in range(10)]


def test_pictures_of_nothing_in_particular(drawn):
    drawn_sheet([""], to_pil(pictures(16)))
    assert [len(row.cells) for row in drawn[0].rows] == [4, 4, 4, 4]
    assert not any(cell.caption for row in drawn[0].rows for cell in row.cells)


def test_captions_have_two_lines_and_are_cut_after_them():
    image = to_pil(pictures(1, 128))[0]

    def height(caption: str) -> int:
        return Sheet([Row("", [Cell(image, caption)])]).draw().height

    one, two = height("cat"), height("a tabby cat that sleeps on a red sofa")
    assert height("") < one < two
    assert height("a tabby cat that sleeps on a red sofa " * 5) == two
    assert height("x" * 500) == one


def test_enlarged_whole():
    sheet = np.asarray(drawn_sheet([""], [Image.new("RGB", (16, 16), (200, 0, 0))]))
    side = (sheet == (200, 0, 0)).all(axis=2).any(axis=0).sum()
    assert side == enlarge(Image.new("RGB", (16, 16)), sheets.SIDE // 16).width
