"""What a run's pictures are drawn from, and that its logs have them too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("accelerate", reason="training needs the train extra")

from accelerate import Accelerator
from conftest import GOLDEN
from small_runs import TRANSFORMER, stage1, stage2, write_pictures

from hqtvae_fast import checkpoint
from hqtvae_fast.classes import Classes
from hqtvae_fast.engine import Executor
from hqtvae_fast.pictures.sheet import Sheet
from hqtvae_fast.train.loop import runner
from hqtvae_fast.train.run import train_stage1, train_stage2
from hqtvae_fast.train.shown import telling
from hqtvae_fast.train.stage2 import Stage2, Stage2Settings

TEXT = {**TRANSFORMER, "condition": "text", "prefix_length": 4, "prefix_vocab_size": 64}
ONCE = {"steps": 2, "picture_every": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trained_vae(pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    train_stage1(stage1(pictures, out, steps=1))
    return out / "model"


@pytest.fixture(autouse=True)
def no_page(request, monkeypatch):
    """Pages take longer than these runs."""
    if "page" not in request.node.name:
        monkeypatch.setattr(telling, "write_report", lambda *_: None)


@pytest.fixture
def sheets(monkeypatch) -> list[Sheet]:
    """Those that were drawn."""
    made: list[Sheet] = []
    draw = Sheet.draw
    monkeypatch.setattr(Sheet, "draw", lambda self: made.append(self) or draw(self))
    return made


def test_reconstructions_are_of_held_out_pictures_by_name(pictures, tmp_path, sheets):
    train_stage1(stage1(pictures, tmp_path, validation=str(pictures), **ONCE))
    above, _ = sheets[0].rows
    assert above.name == "held out"
    assert [cell.caption for cell in above.cells] == ["bright"] * 4 + ["dark"] * 4
    file = tmp_path / "pictures" / "0000002.png"
    assert Image.open(file).size == sheets[0].draw().size


def test_without_held_out_pictures_they_are_of_training_pictures(pictures, tmp_path, sheets):
    train_stage1(stage1(pictures, tmp_path, validation="none", **ONCE))
    assert sheets[0].rows[0].name == "training"
    assert len(sheets[0].rows[0].cells) == 4  # a batch


def test_logs_have_the_sheet(pictures, tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_stage1(stage1(pictures, tmp_path, **ONCE))
    (events,) = (tmp_path / "logs").rglob("events*")
    logged = loading.EventAccumulator(str(events), {"images": 0})
    logged.Reload()
    (image,) = logged.Images("pictures")
    assert image.step == 2
    assert (image.width, image.height) == Image.open(tmp_path / "pictures" / "0000002.png").size


def test_trained_classes_are_drawn_by_name(pictures, trained_vae, tmp_path, sheets):
    train_stage2(stage2(pictures, trained_vae, tmp_path, model={**TRANSFORMER, "num_classes": 9}, **ONCE))
    assert [row.name for row in sheets[0].rows] == ["bright", "dark"]
    assert [len(row.cells) for row in sheets[0].rows] == [4, 4]


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"validation": True}, {"bright picture", "dark picture"}),
        ({"validation": "none"}, {"bright picture", "dark picture"}),
        ({"sample_prompts": ["a bright dark"]}, {""}),
    ],
)
def test_captions_are_drawn(pictures, trained_vae, tmp_path, sheets, changes, wanted):
    if changes.get("validation") is True:
        changes = {"validation": str(pictures)}
    train_stage2(stage2(pictures, trained_vae, tmp_path, model=TEXT, caption="{class_name} picture", **changes, **ONCE))
    named = {row.name for row in sheets[0].rows}
    assert named == wanted
    assert sum(len(row.cells) for row in sheets[0].rows) in (8, 16)


def test_many_classes_are_spread(trained_vae):
    task = object.__new__(Stage2)
    task.classes = Classes(200, tuple(None if label % 2 else f"name {label}" for label in range(200)))
    task.tokenizer, task.config = None, type("Config", (), {"condition": "class", "num_classes": 200})
    task.accelerator = type("Accelerator", (), {"device": "cpu"})
    names, labels = task._subjects()
    assert len(names) == len(labels) == 16
    assert names == [f"name {label}" for label in labels.tolist()]
    assert np.ptp(np.diff(labels.numpy())) <= 2


def test_a_run_leaves_its_page_and_says_its_end(pictures, trained_vae, tmp_path, capsys):
    run = stage2(pictures, trained_vae, tmp_path / "run", validation=str(pictures), steps=3, picture_every=2)
    train_stage2(run)
    page = (tmp_path / "run" / "report.html").read_text()
    for told in ("20 to train on, 20 held out", "bright (10), dark (10)", "finished after update 3", "held out"):
        assert told in page
    assert 'http-equiv="refresh"' not in page
    assert {file.name for file in (tmp_path / "run" / "pictures").iterdir()} == {"0000002.png", "0000003.png"}
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"next: hqtvae sample {tmp_path / 'run'} --classes bright,dark"
    assert said[-2].startswith(f"to look at: {tmp_path / 'run' / 'report.html'}")
    assert said[-3].startswith("stage 2, held out: loss ")
    assert said[-4] == f"finished: {tmp_path / 'run' / 'model'}"


def test_a_page_is_written_as_often_as_it_is_loaded_and_when_a_run_stops(pictures, trained_vae, tmp_path, monkeypatch):
    pages, write = [], telling.write_report

    def written(directory, *others):
        pages.append(len(list((directory / "pictures").iterdir())))
        return write(directory, *others)

    monkeypatch.setattr(telling, "write_report", written)
    often = {"steps": 4, "picture_every": 1, "stop_after": 3}
    train_stage2(stage2(pictures, trained_vae, tmp_path / "slow", **often))
    assert pages == [1, 3]  # at first, and what there is when it stops
    monkeypatch.setattr(runner, "RELOAD", 0)
    pages.clear()
    train_stage2(stage2(pictures, trained_vae, tmp_path / "fast", **often))
    assert pages == [1, 2, 3]


def test_a_run_without_pictures_has_no_page(pictures, tmp_path):
    train_stage1(stage1(pictures, tmp_path, steps=1))
    assert not (tmp_path / "report.html").exists()


def test_captions_give_the_command_an_example(pictures, trained_vae, tmp_path, capsys):
    train_stage2(stage2(pictures, trained_vae, tmp_path, model=TEXT, caption="{class_name} picture", steps=1))
    assert capsys.readouterr().err.splitlines()[-1] == f"next: hqtvae sample {tmp_path} --prompt 'bright picture'"


def test_pictures_are_drawn_by_the_executor(monkeypatch):
    accelerator, made = Accelerator(cpu=True), checkpoint.load(GOLDEN / "class_parallel")
    task = Stage2(accelerator, made.vae, made.transformer, Stage2Settings(steps=1, sample_temperature=0.5))
    drawn, draw = [], Executor.draw
    monkeypatch.setattr(Executor, "draw", lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1])
    sheet = task.pictures(1)
    assert task.transformer.training
    assert len(drawn) == 1
    assert sheet.tobytes() == task.pictures(2).tobytes()  # from the same seeds
    with torch.no_grad():
        task.transformer.head.logits[0].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        task.pictures(3)
