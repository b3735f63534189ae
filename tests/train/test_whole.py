"""Both stages in one: what is left, what goes on after a kill in either, what is not done twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import write_pictures

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.config import ConfigError
from hqtvae_fast.train.loop.records import read_records, without_times
from hqtvae_fast.train.shown import telling
from hqtvae_fast.train.stage1 import Stage1
from hqtvae_fast.train.stage2 import Stage2
from hqtvae_fast.train.whole import train_whole

QUICK = {"steps": 4, "batch_size": 2, "resolution": 16, "precision": "no", "save_every": 2, "workers": 0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def run(pictures: Path, out: Path, **changes) -> Path | None:
    return train_whole({**QUICK, "data": str(pictures), "out": str(out), **changes})


@pytest.fixture(scope="module", autouse=True)
def no_page() -> Iterator[None]:
    """Pages take longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telling, "write_report", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def whole(no_page, pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(pictures, out) == out / "model"
    return out


def losses(out: Path) -> list:
    return [without_times(read_records(out / stage / "losses.jsonl")[0]) for stage in ("stage1", "stage2")]


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("task", [pytest.param(Stage1, marks=pytest.mark.slow), Stage2])
def test_a_kill_in_either_stage_changes_nothing(pictures, whole, tmp_path, monkeypatch, task):
    original = task.update

    def update(self, batches, step):
        if step == 3:
            raise Killed
        return original(self, batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(task, "update", update)
        with pytest.raises(Killed):
            run(pictures, tmp_path)
    assert not (tmp_path / "model").exists()
    assert run(pictures, tmp_path) == tmp_path / "model"
    assert losses(tmp_path) == losses(whole)


def test_what_is_done_is_not_done_again(pictures, whole, monkeypatch, capsys):
    def update(self, batches, step):
        raise AssertionError("an update")

    monkeypatch.setattr(Stage1, "update", update)
    monkeypatch.setattr(Stage2, "update", update)
    before = (whole / "codes.safetensors").stat().st_mtime_ns
    assert run(pictures, whole) == whole / "model"
    assert (whole / "codes.safetensors").stat().st_mtime_ns == before
    assert "stage 1 is done" in capsys.readouterr().err


def test_a_stage_1_that_is_done_stays_what_it_is(pictures, whole):
    with pytest.raises(ConfigError, match=r"resolution: expected 16, as .*; got 32: .* another --out"):
        run(pictures, whole, resolution=32)


@pytest.mark.slow
def test_time_is_for_both_stages(pictures, tmp_path):
    assert run(pictures, tmp_path, stop_after_minutes=1e-6) is None
    assert not (tmp_path / "stage2").exists()
    assert run(pictures, tmp_path) == tmp_path / "model"


def test_the_result_draws_by_name(whole):
    pipe = HQTVAEPipeline.from_pretrained(whole, device="cpu")
    assert pipe.config.id2label == ("bright", "dark")
    assert len(pipe(["dark", "bright"], progress=False).images) == 2


@pytest.mark.slow
def test_two_processes_train_both_stages(pictures, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m",
               "hqtvae_fast.cli", "train", str(pictures), "--out", str(tmp_path / "run"), "--steps", "2",
               "--batch-size", "4", "--resolution", "16", "--precision", "no"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("finished: ") == 1
    assert (tmp_path / "run" / "model" / "config.json").is_file()
