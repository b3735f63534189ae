"""Pieces of the demo's training hand on all that the next one needs, in small files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="training needs the train extra")

SCRIPT = Path(__file__).parents[2] / "tools" / "train_demo.py"
LIMIT = 16 * 2**20


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def work(tmp_path) -> Path:
    folder = tmp_path / "work"
    (folder / "vae" / "checkpoints" / "step-0000010").mkdir(parents=True)
    (folder / "vae" / "checkpoints" / ".partial-step-0000011").mkdir()
    (folder / "vae" / "checkpoints" / "step-0000010" / "weights").write_bytes(bytes(range(256)) * 150_000)
    (folder / "vae" / "checkpoints" / ".partial-step-0000011" / "weights").write_text("half of a checkpoint")
    (folder / "vae" / "losses.jsonl").write_text('{"step": 10}\n')
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_parts_are_small_and_give_everything_back(script, work, tmp_path):
    parts = script.hand_over(work, tmp_path / "handed")
    assert [part.name for part in parts] == ["part-000", "part-001", "part-002"]
    assert all(part.stat().st_size <= LIMIT for part in parts)
    script.take_over(tmp_path / "handed", tmp_path / "next")
    wanted = {name: data for name, data in contents(work).items() if ".partial-" not in name}
    assert contents(tmp_path / "next") == wanted


def test_a_later_piece_replaces_the_parts(script, work, tmp_path):
    script.hand_over(work, tmp_path / "handed")
    (work / "vae" / "checkpoints" / "step-0000010" / "weights").write_bytes(b"small")
    assert len(script.hand_over(work, tmp_path / "handed")) == 1
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_missing_part_is_named(script, work, tmp_path):
    parts = script.hand_over(work, tmp_path / "handed")
    parts[1].unlink()
    with pytest.raises(Exception, match="expected part-000, part-001; got part-000, part-002"):
        script.take_over(tmp_path / "handed", tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_no_parts_is_a_fresh_start(script, tmp_path):
    script.take_over(tmp_path / "handed", tmp_path / "next")
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("size", [64, 96, 128])
def test_configurations_are_whole(script, size):
    files = sorted((script.CONFIGS / str(size)).glob("*.yaml"))
    assert {"stage1", "stage2"} <= {file.stem for file in files} <= set(script.RUNS)
    for file in files:
        cls = script.Stage1Run if file.stem == "stage1" else script.Stage2Run
        begin = {"stage1": {}, "stage2": {"vae": "vae"}, "finetune": {"init": "model"}}[file.stem]
        assert script.read_run(cls, file, {"data": "train.tar", "out": "run", **begin}).steps is not None


@pytest.fixture
def runs(script, monkeypatch) -> list:
    """The runs that are asked for, in order; each is done at once."""
    asked = []

    def done(run):
        asked.append(run)
        (Path(run.out) / "model").mkdir(parents=True)

    monkeypatch.setattr(script, "train_stage1", done)
    monkeypatch.setattr(script, "train_stage2", done)
    return asked


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "some-8-train.tar").touch()
    return folder


def test_each_run_begins_where_the_last_ended(script, runs, data, tmp_path):
    assert script.train(64, data, tmp_path, None, perceptual=tmp_path / "trunk.h5")
    assert (runs[0].data, runs[0].validation) == ((f"{data}/some-8-train.tar",), (f"{data}/some-8-val.tar",))
    assert runs[0].perceptual_weights == str(tmp_path / "trunk.h5")
    assert [Path(run.out).name for run in runs] == ["vae", "hqt", "fine"]
    assert runs[1].vae == str(tmp_path / "vae" / "model")
    assert runs[2].init == str(tmp_path / "hqt" / "model")
    assert runs[1].code_cache != runs[2].code_cache  # of other pictures
    assert script.train(64, data, tmp_path, None)
    assert len(runs) == 3  # nothing is left to do


def test_a_folder_with_two_sets_is_refused(script, runs, data, tmp_path):
    (data / "other-8-train.tar").touch()
    with pytest.raises(Exception, match=r"expected one \.\.\.-train\.tar; got other-8-train\.tar, some-8-train\.tar"):
        script.train(64, data, tmp_path, None)


def test_a_packaged_model_is_fine_tuned_only(script, runs, data, tmp_path):
    assert script.train(64, data, tmp_path, None, tmp_path / "packaged")
    assert [(Path(run.out).name, run.init) for run in runs] == [("fine", str(tmp_path / "packaged"))]
