"""``hqtvae sample --shards`` in one process: what it says, and what it does not take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hqtvae_fast.cli import main
from hqtvae_fast.train.data import open_source

CHECKPOINT = str(Path(__file__).parents[1] / "golden" / "class_parallel")
QUICK = ("--device", "cpu", "--dtype", "fp32", "--batch-size", "2")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def sample(*arguments: str | Path) -> int:
    return main(["sample", CHECKPOINT, *QUICK, *map(str, arguments)])


def test_it_says_what_it_wrote_and_goes_on(tmp_path, capsys):
    folder = tmp_path / "samples"
    wanted = ("--classes", "4,1", "--num-images", 2, "--shard-size", 3, "--top-k", "32,none", "--shards", folder)
    assert sample(*wanted) == 0
    out = capsys.readouterr().out
    assert "4 images in" in out
    assert f"wrote {folder} (2 shards, 4 pictures; checksums in manifest.json)" in out
    source = open_source(folder)
    assert [source.fields(index)["label"] for index in range(4)] == [4, 4, 1, 1]
    assert json.loads((folder / "manifest.json").read_text())["top_k"] == [32, None]
    (folder / "samples-000001.tar").unlink()
    assert sample(*wanted) == 0
    out = capsys.readouterr().out
    assert f"{folder}: 1 of 2 shards are there already" in out
    assert "1 image in" in out


def test_prompts_come_from_a_file(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("red apple, flat\n\n  rocket, shaded \n", encoding="utf-8")
    arguments = ("--prompt", "owl, 3d", "--prompts", file, "--shards", tmp_path / "samples", *QUICK)
    assert main(["sample", "demo", *map(str, arguments)]) == 0
    source = open_source(tmp_path / "samples")
    captions = [source.fields(index)["caption"] for index in range(len(source))]
    assert captions == ["owl, 3d", "red apple, flat", "rocket, shaded"]


def test_a_file_without_prompts_is_refused(tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("\n")
    assert main(["sample", "demo", "--prompts", str(tmp_path / "captions.txt")]) == 2
    assert "expected a description on each line" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [(("--classes", "99"), "--classes: expected 0 to 9; got 99"),
     (("--classes", "1", "--out", "sheet.png"), "--shards: expected neither --out,"),
     (("--classes", "1", "--top-only"), "nor a level alone"),
     (("--prompt", "a cat"), "this model is class-conditional")],
)  # fmt: skip
def test_what_it_does_not_take(tmp_path, capsys, arguments, message):
    assert sample(*arguments, "--shards", tmp_path / "samples") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "samples").exists()


def test_processes_of_torchrun_need_a_folder(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert sample("--classes", "1") == 2
    assert "--shards: expected a folder" in capsys.readouterr().err
