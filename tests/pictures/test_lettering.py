"""Captions in any script: legible where a font has its letters, boxes where none has, and never an error."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hqtvae_fast.pictures import lettering
from hqtvae_fast.pictures.images import with_caption
from hqtvae_fast.pictures.lettering import drawable, font_for
from hqtvae_fast.pictures.sheet import Cell, Row, Sheet

BLUE = Image.new("RGB", (96, 96), (90, 140, 200))
SCRIPTS = ("naïve café – 5 €", "тигр", "ελληνικά", "قطة حمراء", "赤いりんご", "한국어", "नमस्ते", "🦉")
ODD = ("", " ", "a\x00b\tc", "two\nlines", "\ud800cut", "e\u0301", "\u202eright to left\u202c", "\uffff", "\U0010fffd")


def drawn(caption: str) -> np.ndarray:
    return np.asarray(with_caption(BLUE, caption))[BLUE.height :]


def on_a_sheet(text: str) -> Image.Image:
    return Sheet([Row(f"{text}\n{text}", [Cell(BLUE, text), Cell(BLUE, "plain")])], headings=(text, text)).draw()


def test_english_is_in_pillows_own_font_whatever_is_installed():
    assert font_for("owl, 3d (2nd row): 21.3 dB …", 14).getname()[0] == "Aileron"


@pytest.mark.parametrize("text", SCRIPTS[:4])
def test_other_scripts_are_legible(text):
    pytest.importorskip("matplotlib", reason="a font with these letters comes with it")
    font = font_for(text, 14)
    assert lettering._lacking(font, sorted(set(text) - {" "})) == 0
    assert not np.array_equal(drawn(text), drawn(text[::-1]))  # boxes would be alike


@pytest.mark.parametrize("text", SCRIPTS)
def test_what_no_font_has_is_seen_to_be_missing(text, monkeypatch):
    monkeypatch.setattr(lettering, "_found", tuple)
    assert font_for(text, 14).getname()[0] == "Aileron"
    assert drawn(text).min() < 128


@pytest.mark.parametrize("text", [*SCRIPTS, *ODD])
def test_nothing_is_refused(text):
    assert with_caption(BLUE, text).width == BLUE.width
    assert on_a_sheet(text).width > 2 * BLUE.width


def test_what_is_no_letter():
    assert drawable("a\x00b\u200bc\nd\ud800\u202e") == "a bc\nd\ufffd"
