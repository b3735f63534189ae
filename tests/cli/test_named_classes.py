"""Commands on a model whose classes have names: asked for by name, shown by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.checkpoint_config import read_config
from hqtvae_fast.classes import Classes
from hqtvae_fast.cli.drawings import plan
from hqtvae_fast.evaluate import open_pictures
from hqtvae_fast.train.data import open_source

from .conftest import GOLDEN, Run, assert_one_line_error

NAMES = ("cat", "hot dog", None, "tench, Tinca tinca", "owl", *(None,) * 5)
SHOWN = [0, 1, 3, 4]  # labels of the trained ones


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model of ten classes, five of which have names."""
    opened = checkpoints.load(GOLDEN / "class_parallel")
    opened.config = replace(opened.config, id2label=NAMES)
    return checkpoints.save(opened, tmp_path_factory.mktemp("named") / "model")


@pytest.fixture
def captions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written under pictures."""
    from hqtvae_fast.cli import sheets

    written: list[str] = []
    original = sheets.with_caption

    def keep(image: Image.Image, text: str) -> Image.Image:
        written.append(text)
        return original(image, text)

    monkeypatch.setattr(sheets, "with_caption", keep)
    return written


def test_names_are_asked_for_and_shown(run: Run, model: Path, captions: list[str]) -> None:
    files = ("--captions", "--out", "sheet.png", "--out-dir", "files")
    result = run("sample", model, "--classes", "hot dog,owl", "--classes", "tench, Tinca tinca", *files)
    assert (result.code, result.err) == (0, "")
    assert captions == ["hot dog", "owl", "tench, Tinca tinca"]
    names = ["hot-dog-0000.png", "owl-0000.png", "tench-tinca-tinca-0000.png"]
    assert sorted(file.name for file in Path("files").iterdir()) == names
    with Image.open("files/hot-dog-0000.png") as image:
        about = json.loads(image.text["Description"])  # type: ignore[attr-defined]
    assert (about["class"], about["class_name"]) == (1, "hot dog")


def test_an_unknown_name_is_told_before_torch_is_imported(run: Run, model: Path) -> None:
    arguments = ["sample", str(model), "--classes", "hot dgo"]
    assert_one_line_error(run(*arguments), "--classes: expected names", "got 'hot dgo'; close to it: 'hot dog'")
    code = f"import sys; from hqtvae_fast.cli import main; main({arguments!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_names_do_not_excuse_another_condition(run: Run, model: Path) -> None:
    assert_one_line_error(run("sample", model, "--prompt", "cat"), "expected --classes; got --prompt")
    assert_one_line_error(run("sample", "demo", "--classes", "cat"), "expected --prompt; got --classes")


def test_a_class_without_training_pictures_is_drawn_with_one_warning(run: Run, model: Path) -> None:
    result = run("sample", model, "--classes", "2,cat,2", "--out", "sheet.png", "--batch-size", "1")
    assert result.code == 0
    assert result.err.startswith("warning: class 2: without training pictures, ")
    assert result.err.count("\n") == 1


def test_sets_hold_trained_classes_in_turn_with_their_names(run: Run, model: Path) -> None:
    result = run("sample", model, "--num-images", "6", "--shard-size", "4", "--shards", "set")
    assert (result.code, result.err) == (0, "")
    source = open_source(Path("set"))
    assert [source.fields(index)["label"] for index in range(6)] == [*SHOWN, 0, 1]
    assert [source.fields(index)["class_name"] for index in range(3)] == ["cat", "hot dog", "tench, Tinca tinca"]
    more = run("sample", model, "--num-images", "8", "--shard-size", "4", "--shards", "set")
    assert "1 of 2 shards are there already" in more.out


def test_sets_of_classes_asked_for_by_name(run: Run, model: Path) -> None:
    assert run("sample", model, "--classes", "hot dog", "--num-images", "2", "--shards", "set").code == 0
    assert open_source(Path("set")).fields(1)["class_name"] == "hot dog"
    assert_one_line_error(run("sample", model, "--classes", "emu", "--shards", "other"), "got 'emu'; there are cat")
    assert not Path("other").exists()


def test_figures_take_and_show_names(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hqtvae_fast.evaluate.figures import levels

    shown: list[str] = []
    original = levels.Sheet

    def keep(rows: Sequence[levels.Row], headings: Sequence[str] = (), *rest: Any) -> levels.Sheet:
        shown.extend([*headings, *(cell.caption for row in rows for cell in row.cells if cell.caption)])
        return original(rows, headings, *rest)

    monkeypatch.setattr(levels, "Sheet", keep)
    assert run("figure", "levels", model, "--classes", "cat,hot dog").code == 0
    assert run("figure", "redraw", model, "--classes", "hot dog", "--draws", "1").code == 0
    assert shown == ["cat", "hot dog", "kept", "draw 1", "hot dog"]


def test_pictures_tell_what_they_show(run: Run, model: Path) -> None:
    assert run("sample", model, "--classes", "hot dog,owl", "--out-dir", "files").code == 0
    assert run("sample", model, "--classes", "hot dog,owl", "--shards", "set").code == 0
    for folder in ("files", "set"):
        assert [open_pictures([folder]).shows(index) for index in range(2)] == ["hot dog", "owl"]
    for file in Path("files").iterdir():
        Path("plain").mkdir(exist_ok=True)
        Image.open(file).copy().save(Path("plain") / f"{len(file.name)}.png")
    assert open_pictures(["plain"]).shows(0) == ""


def test_a_class_that_is_not_named_is_asked_for_with_examples(run: Run, model: Path) -> None:
    assert_one_line_error(
        run("sample", model), "class-conditional: expected --classes, such as 'cat,hot dog'; got none"
    )


def test_a_converted_model_keeps_its_names(run: Run, model: Path) -> None:
    assert run("convert", model, "converted", "--dtype", "bf16").code == 0
    assert read_config("converted").id2label == NAMES


def test_info_lists_the_classes(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hqtvae_fast.cli.model_facts.show_costs", lambda *_: None)  # seconds of counting
    result = run("info", model)
    assert result.code == 0
    assert ': draws 64x64 pictures from 4 classes (cat, hot dog, "tench, Tinca tinca", owl); ' in result.out
    rows = result.out.partition("Classes ")[2].splitlines()[2:7]
    listed = [[cell.strip() for cell in row.strip().split("  ", 1)] for row in rows]
    assert listed == [
        ["0", "cat"],
        ["1", "hot dog"],
        ["3", NAMES[3]],
        ["4", "owl"],
        ["6 others", "without training pictures"],
    ]


# ---------------------------------------------------------------------------------------------------------- file names


def test_a_file_is_named_after_its_class_and_after_no_other() -> None:
    classes = Classes(6, ("Hot dog", "hot-dog", "猫", None, "../a/b", "?!"))
    names = [drawing.name for drawing in plan(range(6), None, None, 1, 0, classes)]
    wanted = ["hot-dog-0000", "hot-dog-0001", "猫", "class-0003", "a-b", "class-0005"]
    assert names == [f"{name}-0000" for name in wanted]
