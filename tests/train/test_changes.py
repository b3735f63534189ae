"""A run that goes on with other fields than it was begun with."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import TRANSFORMER, VAE, losses, stage1, stage2, write_pictures

from hqtvae_fast.fields import ConfigError
from hqtvae_fast.train.changes import changes, earlier_run, write_run
from hqtvae_fast.train.config import Stage1Run, Stage2Run, may_change, passes
from hqtvae_fast.train.loop.position import OtherRunError
from hqtvae_fast.train.run import train_stage1, train_stage2

FIXED = {
    Stage1Run: {"model", "adversarial", "adversarial_start", "discriminator_channels"},
    Stage2Run: {"model", "prior", "condition", "caption", "vocab_size", "condition_dropout"},
}
FIXED_IN_BOTH = {"select", "init", "size", "resolution", "seed", "given"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("stage", FIXED)
def test_what_may_not_change(stage):
    """A new field may not, until somebody has thought of it."""
    names = {field.name for field in fields(stage)}
    assert {name for name in names if not (may_change(stage, name) or passes(name))} == FIXED[stage] | FIXED_IN_BOTH


def begun(folder: Path, run) -> dict:
    """What ``run`` leaves in a folder, read again."""
    folder.mkdir()
    write_run(folder, run)
    assert earlier_run(folder) == {}  # nothing to go on from: the run begins anew
    (folder / "checkpoints" / "step-0000002").mkdir(parents=True)
    return earlier_run(folder)


def test_changes_are_told(tmp_path):
    run = stage1("a", tmp_path, stop_after=3)
    earlier = begun(tmp_path / "run", run)
    assert changes(run, earlier) == []
    assert "stop_after" not in earlier  # which was for one process
    other = stage1("a", tmp_path / "elsewhere", learning_rate=5e-4, batch_size=8, flip=True, validation=["b", "c"])
    assert changes(other, earlier) == [
        "validation: b, c, was none",
        "flip: yes, was no",
        "batch_size: 8, was 4",
        "learning_rate: 0.0005, was 0.001",
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"seed": 4},
            "seed: expected 3, as this run was started with; got 4: leave it as it was, or give another --out",
        ),
        ({"model": {**VAE, "channels": 64}}, "model.channels: expected 32, as this run was started with; got 64"),
        ({"init": "demo"}, "init: expected none, as this run was started with; got demo"),
        ({"adversarial": 0.0}, "adversarial: expected 0.75, as"),
    ],
)
def test_what_cannot_change_is_refused(tmp_path, change, message):
    earlier = begun(tmp_path / "run", stage1("a", tmp_path))
    with pytest.raises(ConfigError) as error:
        changes(stage1("a", tmp_path, **change), earlier)
    assert str(error.value).startswith(message)


def test_a_folder_of_the_other_stage(tmp_path):
    earlier = begun(tmp_path / "run", stage1("a", tmp_path))
    with pytest.raises(ConfigError, match=r"^stage: expected stage1, as this run was started with; got stage2"):
        changes(stage2("a", "demo", tmp_path), earlier)


def test_files_of_other_versions_and_damaged_ones(tmp_path):
    run = stage1("a", tmp_path)
    earlier = begun(tmp_path / "run", run)
    assert changes(run, {"seed": earlier["seed"], "of_the_future": 1}) == []
    (tmp_path / "run" / "run.json").write_text('{"seed": 3')
    with pytest.raises(ValueError, match=r"run\.json: expected JSON"):
        earlier_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"run\.json: expected the fields of a run; got list"):
        earlier_run(tmp_path / "run")


def rates(out: Path) -> list[float]:
    return [record["learning_rate"] for record in losses(out)]


def test_a_changed_rate_and_length_take_effect(pictures, tmp_path, capsys):
    constant = {"schedule": "constant", "warmup_epochs": 0, "adversarial": 0.0}
    train_stage1(stage1(pictures, tmp_path, **constant, stop_after=3))
    assert json.loads((tmp_path / "run.json").read_text())["learning_rate"] == 1e-3
    capsys.readouterr()
    train_stage1(stage1(pictures, tmp_path, **constant, learning_rate=5e-4, steps=7, batch_size=8))
    assert (
        "changed: batch_size: 8, was 4; steps: 7, was 6; learning_rate: 0.0005, was 0.001\n" in capsys.readouterr().err
    )
    assert json.loads((tmp_path / "run.json").read_text())["learning_rate"] == 5e-4
    assert rates(tmp_path) == [1e-3] * 3 + [5e-4] * 4
    assert [record["epoch"] for record in losses(tmp_path)] == [0.2, 0.4, 0.6, 1.0, 1.4, 1.8, 2.2]


def test_a_longer_cosine_goes_on_from_where_it_is(pictures, tmp_path):
    cosine = {"warmup_epochs": 0, "adversarial": 0.0}
    train_stage1(stage1(pictures, tmp_path / "short", **cosine, stop_after=3))
    train_stage1(stage1(pictures, tmp_path / "short", **cosine, steps=12))
    train_stage1(stage1(pictures, tmp_path / "long", **cosine, steps=12))
    assert rates(tmp_path / "short")[3:] == rates(tmp_path / "long")[3:]
    assert rates(tmp_path / "short")[:3] != rates(tmp_path / "long")[:3]


def test_epochs_are_counted_in_pictures_when_the_batch_changes(pictures, tmp_path):
    short = {"adversarial": 0.0, "steps": None, "epochs": 3.0}  # of 20 pictures: 15 updates of 4
    train_stage1(stage1(pictures, tmp_path, **short, stop_after=5))
    train_stage1(stage1(pictures, tmp_path, **short, batch_size=8, stop_after=1))
    train_stage1(stage1(pictures, tmp_path, **short, batch_size=8))
    assert [record["epoch"] for record in losses(tmp_path)][4:] == [1.0, 1.4, 1.8, 2.2, 2.6, 3.0]
    assert (tmp_path / "model").is_dir()


def test_another_stage_1_is_refused(pictures, tmp_path):
    for name, seed in (("one", 1), ("other", 2)):
        train_stage1(stage1(pictures, tmp_path / name, steps=1, seed=seed, adversarial=0.0))
    run = {"model": TRANSFORMER}
    train_stage2(stage2(pictures, tmp_path / "one", tmp_path / "run", **run, stop_after=2))
    (tmp_path / "one").rename(tmp_path / "moved")
    train_stage2(stage2(pictures, tmp_path / "moved", tmp_path / "run", **run, stop_after=1))
    with pytest.raises(OtherRunError, match="vae: expected the stage 1 that this run was started with"):
        train_stage2(stage2(pictures, tmp_path / "other", tmp_path / "run", **run))


def test_what_is_held_out_counts_as_other_pictures(pictures, tmp_path):
    run = {"adversarial": 0.0, "stop_after": 2, "steps": 3}
    train_stage1(stage1(pictures, tmp_path, **run, validation=()))
    with pytest.raises(OtherRunError, match="data: expected the pictures that this run was started on"):
        train_stage1(stage1(pictures, tmp_path, **run))
