"""Every script of examples/ runs to its end on the models that are here, and leaves the picture that it speaks of."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
CLASSES = ("--checkpoint", str(ROOT / "tests" / "golden" / "class_parallel"))
# The arguments, and the sheet's (width, height): pictures of 64 or 32 pixels with gaps of 2.
CASES = {
    "drop_in": (("--candidates", "2", "--prompts", "red apple, flat"), (130, 64)),
    "class_grid": (("--columns", "2", "--prompts", "red apple, flat"), (130, 130)),
    "text": (("--prompts", "red apple, flat", "--each", "2"), None),
    "edit": (("--finishes", "4"), (262, 196)),
    "train_on_folder": (("--work", "work", "--steps", "2"), (134, 66)),
}
SLOW = {"train_on_folder": pytest.mark.slow}
RED_APPLES = {"drop_in": [(0, 0)], "class_grid": [(0, 0), (0, 66)], "text": [(0, 0)], "edit": [(0, 0), (0, 66)]}
"""Corners of 64x64 pictures that should be one."""


def test_every_script_is_tried():
    assert sorted(CASES) == sorted(file.stem for file in (ROOT / "examples").glob("*.py"))


def run(name, arguments, tmp_path, monkeypatch, capsys) -> Image.Image:
    """The sheet that a script writes, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--out", "sheet.png"])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    assert "wrote sheet.png" in capsys.readouterr().out
    with Image.open("sheet.png") as sheet:
        sheet.load()
    return sheet


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in CASES])
def test_T12_a_script(name, tmp_path, monkeypatch, capsys):
    if name == "train_on_folder":
        pytest.importorskip("accelerate", reason="training needs the train extra")
    arguments, size = CASES[name]
    sheet = run(name, arguments, tmp_path, monkeypatch, capsys)
    assert size is None or sheet.size == size
    assert np.asarray(sheet).std() > 1, "a sheet without a picture"
    for x, y in RED_APPLES.get(name, []):
        picture = np.asarray(sheet.crop((x, y, x + 64, y + 64))).astype(float)
        assert picture[:4, :4].mean() > 225, "a corner that is not white"
        red, green, blue = picture[28:36, 28:36].reshape(-1, 3).mean(axis=0)
        assert red > 150, "a middle that is not red"
        assert max(green, blue) < red / 2, "a middle that is not red"


@pytest.mark.parametrize("name", ["drop_in", "class_grid"])
def test_T12_a_script_with_a_released_class_checkpoint(name, tmp_path, monkeypatch, capsys):
    arguments = (*CLASSES, "--classes", "1", "2", *(("--columns", "2") if name == "class_grid" else ()))
    sheet = run(name, arguments, tmp_path, monkeypatch, capsys)
    assert sheet.size == ((130, 262) if name == "class_grid" else (262, 130))


def test_T12_edits_rows_are_its_own(tmp_path, monkeypatch, capsys):
    """With two finishes: both pictures and the layout; then two of each layout and a blank."""
    sheet = run("edit", ("--finishes", "2"), tmp_path, monkeypatch, capsys)
    assert sheet.size == (196, 196)
    blank = [np.asarray(sheet.crop((132, y, 196, y + 64))).min() == 255 for y in (0, 66, 132)]
    assert blank == [False, True, True]
