"""Runs that were cut off, on a full disk or at a power cut, go on; fields out of their bounds are refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="training needs the train extra")

from hqtvae_fast.cli import main
from hqtvae_fast.fields import ConfigError
from hqtvae_fast.run_folder import CONTENTS, damage
from hqtvae_fast.train import run as runs
from hqtvae_fast.train.config import Stage1Run, Stage2Run, read_run
from hqtvae_fast.train.loop.records import cut_records, read_records
from hqtvae_fast.train.loop.run_checkpoints import RunCheckpoints
from hqtvae_fast.train.loop.runner import TrainingError
from hqtvae_fast.train.run import train_stage1
from tests.train.small_runs import losses, same, stage1, weights, write_pictures

STEPS = 6


def go(pictures: Path, out: Path, **changes: object) -> None:
    train_stage1(stage1(pictures, out, **{"adversarial": 0.0, "keep": 3, "steps": STEPS, **changes}))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> Path:
    """A run to its end, with checkpoints after updates 2, 4 and 6."""
    out = tmp_path_factory.mktemp("whole")
    go(pictures, out)
    return out


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """That run when it had made its fourth update."""
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "step-0000006")
    shutil.rmtree(out / "model")
    return out


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def steps(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


# ----------------------------------------------------------------------------------------------- what was cut off


@pytest.mark.parametrize("ending", [b'{"step": 5, "lo', b"\0\0\0\0", b"\xff\xfe{\n[1]\n7\n"])
def test_F10_a_cut_last_line_of_the_losses(whole, run, pictures, capsys, ending):
    with (run / "losses.jsonl").open("ab") as file:
        file.write(ending)
    (run / "checkpoints" / ".partial-step-0000005").mkdir()  # of a process that was killed
    go(pictures, run)
    assert steps(run) == ["step-0000002", "step-0000004", "step-0000006"]
    assert losses(run) == losses(whole)
    assert f"of {run / 'losses.jsonl'}" in capsys.readouterr().err


def test_F10_records_are_read_behind_a_net(tmp_path):
    file = tmp_path / "losses.jsonl"
    assert read_records(file) == ([], 0)
    file.write_bytes(b'{"step": 1, "loss": NaN}\n{"step": "2"}\n[3]\n{"step": 3}\n' + b"[" * 9999 + b'\n{"st')
    records, broken = read_records(file)
    assert [record["step"] for record in records] == [1, 3]
    assert broken == 4
    assert cut_records(file, 2) == 4
    assert read_records(file)[0][0]["step"] == 1
    assert cut_records(file, 2) == 0


@pytest.mark.parametrize("listed", [True, False], ids=["", "of an older version"])
def test_F10_a_cut_newest_checkpoint(whole, run, pictures, capsys, listed):
    newest = run / "checkpoints" / "step-0000004"
    cut(newest / "model.safetensors")
    if not listed:
        (newest / CONTENTS).unlink()
    go(pictures, run)
    said = capsys.readouterr()
    assert f"going on from {newest.with_name('step-0000002')}, update 2" in said.err
    assert f"left out: {newest}, a damaged checkpoint (" in said.err
    assert ("model.safetensors: expected " in said.err) == listed
    assert steps(run) == ["damaged-step-0000004", "step-0000002", "step-0000004", "step-0000006"]
    assert losses(run) == losses(whole)
    assert same(weights(run), weights(whole))


def test_F10_every_file_of_a_checkpoint_is_looked_at(run, tmp_path):
    newest = run / "checkpoints" / "step-0000004"
    names = [file.name for file in newest.iterdir() if file.name != CONTENTS]
    assert {"model.safetensors", "optimizer.bin", "random_states_0.pkl"} <= set(names)
    assert damage(newest) == ""
    for name in names:
        copy = shutil.copytree(newest, tmp_path / name)
        cut(copy / name)
        assert damage(copy).startswith(f"{name}: expected ")
        (copy / name).unlink()
        assert damage(copy).endswith("got no such file")
    (newest / CONTENTS).write_text("{")
    assert damage(newest).startswith(CONTENTS)


def test_F10_a_run_without_a_whole_checkpoint_is_not_begun_anew(run, pictures):
    before = (run / "losses.jsonl").read_bytes()
    for name in ("step-0000002", "step-0000004"):
        cut(run / "checkpoints" / name / "optimizer.bin")
    with pytest.raises(TrainingError, match=r"expected a checkpoint to go on from; got .*4: optimizer.*; .*2: optimiz"):
        go(pictures, run)
    assert steps(run) == ["step-0000002", "step-0000004"]
    assert (run / "losses.jsonl").read_bytes() == before


def test_F10_a_checkpoint_has_its_name_when_it_is_on_the_disk(tmp_path, monkeypatch):
    done: list[str] = []
    replace_, sync = os.replace, os.fsync

    def replaced(source, target):
        done.append(f"name {Path(target).name}")
        replace_(source, target)

    def synced(descriptor):
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("names of open files come from /proc")
    saves = RunCheckpoints(tmp_path / "checkpoints", keep=1)
    saves.partial(5).mkdir(parents=True)
    (saves.partial(5) / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("os.replace", replaced)
    monkeypatch.setattr("os.fsync", synced)
    saves.finish(5)
    order = ["sync model.safetensors", f"name {CONTENTS}", "name step-0000005", "sync checkpoints"]
    assert [done.index(entry) for entry in order] == sorted(done.index(entry) for entry in order)
    assert done.index("sync .partial-step-0000005") < done.index("name step-0000005")


# -------------------------------------------------------------------------------------------------- a full disk


@contextmanager
def disk_for(size: int):
    """No file may grow beyond ``size`` bytes: how a full disk looks to whoever writes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_G11_a_full_disk_names_the_file_and_what_was_kept(whole, run, pictures):
    checkpoint = run / "checkpoints" / "step-0000006"
    expected = rf"{checkpoint}: cannot be written \(.*\); update 6; .* from the last good checkpoint: .*step-0000004"
    with disk_for(100_000), pytest.raises(TrainingError, match=expected):
        go(pictures, run)
    assert steps(run) == ["step-0000002", "step-0000004"]
    go(pictures, run)
    assert losses(run) == losses(whole)
    assert same(weights(run), weights(whole))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_G11_a_full_disk_under_the_losses(run, pictures):
    # What is there already is rewritten as a file of its own: the disk is full when the next line comes.
    add, file = runs.Runner._log, run / "losses.jsonl"

    def full(self, metrics):
        file.unlink()
        file.symlink_to("/dev/full")
        add(self, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Runner, "_log", full)
        with pytest.raises(TrainingError, match=rf"{file}: cannot be written \(No space left on device\); update 5; "):
            go(pictures, run)


# ----------------------------------------------------------------------------------------------- what a log says


def test_G11_a_log_file_tells_how_far_a_run_is(run, pictures, capsys):
    go(pictures, run)
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match(r"stage 1: \d+%", line)]
    assert [line.split("  ")[0] for line in lines] == ["stage 1: 83% (5 of 6)", "stage 1: 100% (6 of 6)"]
    assert all("  loss " in line and " images/s" in line for line in lines)


# -------------------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize("stage, default", [(Stage1Run, 4e-5), (Stage2Run, None)])
def test_G5_a_learning_rate_of_nought(pictures, tmp_path, monkeypatch, stage, default):
    seen = []
    monkeypatch.setattr(runs, "go", lambda begun, config, task, *rest: seen.append(task.settings.learning_rate))
    for rate in (0.0, None, 1e-3):
        base = stage1(pictures, tmp_path / "run")
        if stage is Stage1Run:
            train_stage1(replace(base, learning_rate=rate))
        else:
            vary = Stage2Run(data=("x",), out="x", steps=5, learning_rate=rate, vae="x")
            seen.append(runs.make_stage2_settings(vary, 5).learning_rate)
    assert seen == [0.0, default, 1e-3]


OUT_OF_BOUNDS = {
    "keep": (-1, 0), "accumulate": (0, -2), "batch_size": (0, -8), "steps": (0, -1), "workers": (-1,),
    "seed": (-1, 2**32), "log_every": (-1,), "save_every": (-5,), "picture_every": (-1,), "validate_every": (-1,),
    "stop_after": (0, -1), "stop_after_minutes": (-1.0, float("nan")), "warmup_epochs": (-0.5,),
    "learning_rate": (-1e-3, float("inf"), float("nan")), "validation_pictures": (0,), "precision": ("int4",),
    "perceptual": (-1.0,), "perceptual_crop": (0, 15), "adversarial": (-1.0, float("nan")), "adversarial_start": (-1,),
    "discriminator_channels": (0, 24), "commitment": (-1.0,), "top_only": ("some",), "residual": (-1.0,),
    "schedule": ("linear",), "vocab_size": (2,), "weight_decay": (-1.0,), "clip": (0.0, -1.0), "soft_labels": (-1.0,),
    "level_weights": ([], [-1.0]), "image_weight": (-1.0,), "text_weight": (-1.0,), "sample_top_k": (0,),
    "sample_temperature": (0.0, -1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_G6_fields_out_of_their_bounds(tmp_path, name):
    stages = [stage for stage in (Stage1Run, Stage2Run) if name in stage.__dataclass_fields__]
    assert stages
    for value in OUT_OF_BOUNDS[name]:
        for stage in stages:
            base = {"data": "a", "out": "b", "steps": 3, "vae": "c"}
            known = {key: base[key] for key in base if key in stage.__dataclass_fields__}
            with pytest.raises(ConfigError, match=f"^{name}: expected .*; got"):
                read_run(stage, None, {**known, name: value})
            file = tmp_path / "run.yaml"
            file.write_text(json.dumps({**known, name: value}).replace("NaN", ".nan").replace("Infinity", ".inf"))
            # One that only goes with another field is checked when all layers are there.
            where = "" if name == "discriminator_channels" and value else f"{file}: "
            with pytest.raises(ConfigError, match=f"^{where}{name}: expected .*; got"):
                read_run(stage, file, {})


def test_G6_epochs_of_nought():
    with pytest.raises(ConfigError, match=r"^epochs: expected a number of 0.001 or more or none; got 0"):
        read_run(Stage1Run, None, {"data": "a", "out": "b", "epochs": 0})


def test_G6_every_numeric_field_has_bounds():
    for stage in (Stage1Run, Stage2Run):
        bare = [name for name, field in stage.__dataclass_fields__.items() if "int" in str(field.type).split()]
        assert bare == [], "declare what they may be"


@pytest.mark.parametrize(
    "option, message",
    [(("--learning-rate", "-1"), "--learning-rate: expected a number of 0 or more"),
     (("--epochs", "0"), "--epochs: expected a number of 0.001 or more"),
     (("--seed", "-4"), "--seed: expected an integer from 0 to ")],
)  # fmt: skip
def test_G6_an_option_is_named_as_it_was_given(tmp_path, capsys, option, message):
    assert main(["train", "stage1", "--data", str(tmp_path), "--out", str(tmp_path / "run"), *option]) == 2
    assert message in capsys.readouterr().err


def test_G6_one_checkpoint_is_kept_at_least(pictures, tmp_path):
    saves = RunCheckpoints(tmp_path, keep=1)
    for step in (2, 4):
        saves.partial(step).mkdir()
        torch.save({}, saves.partial(step) / "optimizer.bin")
        saves.finish(step)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000004"]
