"""Sets in shards that are extended: pictures that are there stay as they are, byte by byte."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import golden_pipeline

from hqtvae_fast.cli import main
from hqtvae_fast.cli.sample_set import draw_together
from hqtvae_fast.config import ConfigError
from hqtvae_fast.distributed import SampleShards, SampleSpec, Subjects, join_team
from tests.distributed.jobs import contents

CHECKPOINT = Path(__file__).parents[1] / "golden" / "class_parallel"
ONE = SampleSpec(Subjects((3,), 4), seed=5, top_k=(40, None), batch_size=2, shard_size=3)
LIST = replace(ONE, subjects=Subjects((0, 7), 4))


def shards(folder: Path, spec: SampleSpec) -> SampleShards:
    return SampleShards(folder, golden_pipeline("class_parallel"), spec)


def draw(folder: Path, spec: SampleSpec, total: int, *values: int) -> SampleSpec:
    """Draw ``total`` pictures, of other classes if any are given."""
    spec = replace(spec, subjects=replace(spec.subjects, total=total, values=values or spec.subjects.values))
    with join_team() as team:
        draw_together(team, shards(folder, spec))
    return spec


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file, "r:") as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize("spec, values", [(ONE, ()), (LIST, (0, 7, 2))], ids=["one class", "a longer list"])
def test_T11_a_set_is_extended(tmp_path, spec, values):
    folder = tmp_path / "set"
    draw(folder, spec, 4)
    before = members(folder)
    kept = (folder / "samples-000000.tar").stat().st_mtime_ns
    draw(folder, spec, 6, *values)
    after = members(folder)
    assert (len(before), len(after)) == (8, 12)
    assert {name: after[name] for name in before} == before
    assert (folder / "samples-000000.tar").stat().st_mtime_ns == kept, "a whole shard was drawn again"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["pictures"], [entry["pictures"] for entry in manifest["shards"]]) == (6, [3, 3])
    if spec is LIST:
        draw(tmp_path / "new", spec, 6, *values)
        assert contents(tmp_path / "new") == contents(folder)


@pytest.mark.parametrize(
    "larger, total, expected",
    [(Subjects((), 9), 4, Subjects((), 4)), (Subjects(("a",), 9), 4, Subjects(("a",), 4)),
     (Subjects((0, 3, 7), 9, in_turn=True), 4, Subjects((0, 3, 7), 4, in_turn=True)),
     (Subjects((0, 3, 7), 9), 6, Subjects((0, 3), 6)), (Subjects((0, 3, 7), 9), 4, None)],
)  # fmt: skip
def test_T11_the_first_pictures_of_a_set(larger, total, expected):
    found = larger.first(total)
    assert found == expected
    assert found is None or [found.at(index) for index in range(total)] == [larger.at(index) for index in range(total)]


def test_T11_an_extension_may_be_killed_at_any_point(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    draw(folder, ONE, 4)
    before = members(folder)
    with monkeypatch.context() as patch:
        patch.setattr(SampleShards, "_write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            draw(folder, ONE, 5)
    assert not (folder / "manifest.json").exists()
    with pytest.raises(ConfigError, match="a set is never cut"):
        draw(folder, ONE, 4)
    draw(folder, ONE, 5)
    after = members(folder)
    assert {name: after[name] for name in before} == before
    assert len(after) == 10
    (folder / "samples-000001.json").write_text("{")  # a checksum that is none
    spec = draw(folder, ONE, 5)
    assert members(folder) == after
    assert shards(folder, spec).open(shards(folder, spec).described()) == []


@pytest.mark.parametrize(
    "spec, total, change, message",
    [(ONE, 3, {}, r"holds 4 pictures of these; got 3 wanted: a set is never cut"),
     (LIST, 2, {}, r"holds 4 pictures of these; got 2 wanted: a set is never cut"),
     (LIST, 8, {}, r"holds 4 pictures of these; got 8 wanted: one of several is extended by more of them"),
     (ONE, 9, {"seed": 6}, r"made from something else \(.*seed: 5 there, 6 wanted"),
     (ONE, 9, {"subjects": Subjects((4,), 9)}, r"made from something else \(subjects"),
     (LIST, 9, {"subjects": Subjects((7, 0, 2), 6)}, r"made from something else \(subjects")],
)  # fmt: skip
def test_T11_what_is_no_extension(tmp_path, spec, total, change, message):
    first = shards(tmp_path, spec)
    first.open(first.described())
    before = (tmp_path / "samples.json").read_bytes()
    other = shards(tmp_path, replace(spec, **{"subjects": replace(spec.subjects, total=total), **change}))
    with pytest.raises(ConfigError, match=message):
        other.open(other.described())
    assert (tmp_path / "samples.json").read_bytes() == before


def test_T11_the_command_extends_a_folder(tmp_path, capsys):
    for number, of_shards in ((3, 2), (5, 3)):
        wanted = ("--classes", "4", "--num-images", str(number), "--shard-size", "2", "--shards", str(tmp_path / "set"))
        where = ("--device", "cpu", "--dtype", "fp32", "--batch-size", "2")
        assert main(["sample", str(CHECKPOINT), *where, *wanted]) == 0
        out = capsys.readouterr().out
        assert f"({of_shards} shards, {number} pictures;" in out
    assert "1 of 3 shards are there already" in out
    assert "3 images in" in out  # the last shard had room for one
