"""Which model of a training run's folder is opened."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest

from hqtvae_fast import checkpoint
from hqtvae_fast.checkpoint_config import check_tokenizer, read_config, resolve
from hqtvae_fast.cli import main
from hqtvae_fast.config import CheckpointError
from hqtvae_fast.run_folder import CONTENTS, sizes


def model(folder: Path) -> Path:
    shutil.copytree(checkpoint.DEMO_DIRECTORY, folder)
    return folder


def saved(run: Path, step: int) -> Path:
    folder = model(run / "checkpoints" / f"step-{step:07d}")
    (folder / "optimizer.bin").write_bytes(b"moments")
    (folder / CONTENTS).write_text(json.dumps(sizes(folder)))
    return folder


def begun(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    return folder


def opened(path: Path) -> tuple[Path, str]:
    """The folder that is opened, and what is said of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = resolve(path)
    return found, " ".join(str(warning.message) for warning in said)


def test_a_finished_run_is_its_model(tmp_path):
    run = begun(tmp_path / "mine")
    saved(run, 500)
    model(run / "model")
    assert opened(run) == (run / "model", "")
    (run / "run.json").unlink()
    shutil.rmtree(run / "checkpoints")
    assert opened(run) == (run / "model", "")


def test_an_unfinished_run_is_its_newest_whole_checkpoint(tmp_path):
    run = begun(tmp_path / "mine")
    for step in (500, 1000, 1500, 2000):
        saved(run, step)
    last = run / "checkpoints"
    (last / "step-0001500" / "optimizer.bin").write_bytes(b"mom")  # the disk was full
    (last / "step-0002000").rename(last / ".partial-step-0002000")
    model(last / "damaged-step-0002500")
    begun(last / "step-0003000")  # of a version whose checkpoints were no models
    (run / "model").mkdir()  # which is being written
    assert opened(run) == (last / "step-0001000", f"{run}: not finished; opening checkpoints/step-0001000")


def test_a_run_of_both_stages(tmp_path):
    run = tmp_path / "mine"
    begun(run / "stage1")
    with pytest.raises(
        CheckpointError, match="mine: expected a model in this run's folder; got a run that has not sav"
    ):
        resolve(run)
    saved(run / "stage1", 500)
    assert opened(run)[1] == f"{run}: not finished; opening stage1/checkpoints/step-0000500"
    model(run / "stage1" / "model")
    begun(run / "stage2")
    assert opened(run) == (run / "stage1" / "model", f"{run}: not finished; opening stage1/model")
    saved(run / "stage2", 500)
    assert opened(run)[0] == run / "stage2" / "checkpoints" / "step-0000500"
    model(run / "stage2" / "model")
    assert opened(run)[0] == run / "stage2" / "model"
    model(run / "model")
    assert opened(run) == (run / "model", "")


def test_other_folders_are_what_they_were(tmp_path):
    own = model(tmp_path / "own")
    (own / "checkpoints").mkdir()
    assert opened(own) == (own, "")
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match=r"none: expected config\.json or config\.yaml, found neither"):
        read_config(tmp_path / "none")
    saved(begun(tmp_path / "run"), 5)
    with pytest.raises(CheckpointError, match=f"checkpoints: expected config.json.*: give {tmp_path / 'run'}$"):
        read_config(tmp_path / "run" / "checkpoints")


def test_every_reader_opens_the_same(tmp_path, capsys):
    run = begun(tmp_path / "mine")
    saved(run, 500)
    with pytest.warns(UserWarning, match="not finished"):
        config = read_config(run)
    with pytest.warns(UserWarning, match="not finished"):
        check_tokenizer(run, config)
    with pytest.warns(UserWarning, match="not finished"):
        assert checkpoint.load(run).config == config
    assert main(["sample", str(run), "--prompt", "owl", "--out", str(tmp_path / "owl.png")]) == 0
    assert capsys.readouterr().err.count("warning: " + f"{run}: not finished; opening checkpoints/step-0000500") == 1
