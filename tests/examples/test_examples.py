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
    "drop_in": ((*CLASSES, "--candidates", "2"), (130, 130)),
    "class_grid": ((*CLASSES, "--columns", "2", "--classes", "1", "2"), (130, 262)),
    "text": (("--prompts", "red apple, flat", "--each", "2"), None),
    "edit": (("--finishes", "3"), (196, 196)),
    "train_on_folder": (("--work", "work", "--steps", "2"), (134, 66)),
}


def test_every_script_is_tried():
    assert sorted(CASES) == sorted(file.stem for file in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", CASES)
def test_a_script(name, tmp_path, monkeypatch, capsys):
    if name == "train_on_folder":
        pytest.importorskip("accelerate", reason="training needs the train extra")
    arguments, size = CASES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--out", "sheet.png"])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    assert "wrote sheet.png" in capsys.readouterr().out
    with Image.open("sheet.png") as sheet:
        assert size is None or sheet.size == size
        assert np.asarray(sheet).std() > 1, "a sheet without a picture"
