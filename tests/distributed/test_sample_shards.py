"""Sets of pictures in shards: picture by picture what the pipeline draws, and the same files whoever draws them."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import replace

import pytest
from jobs import SPEC, contents, finish, shards_in, start, wait_for
from PIL import Image, ImageChops

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.cli.sample_set import draw_together
from hqtvae_fast.config import ConfigError
from hqtvae_fast.distributed import SampleShards, SampleSpec, Subjects, join_team
from hqtvae_fast.distributed.subjects import make_subjects
from hqtvae_fast.train.data import open_source


def draw_alone(folder, spec=SPEC):
    with join_team() as team:
        draw_together(team, shards_in(folder, spec))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process draws."""
    folder = tmp_path_factory.mktemp("alone") / "samples"
    draw_alone(folder)
    return folder


def test_pictures_are_the_pipelines(alone, class_pipeline):
    source = open_source(alone)
    assert len(source) == 22
    labels = [SPEC.subjects.at(index) for index in range(22)]
    assert labels[:4] == [0, 3, 7, 0]
    drawn = class_pipeline(labels, seed=5, top_k=40, batch_size=11, progress=False)
    for index, image in enumerate(drawn.images):
        assert source.key(index) == f"samples-{index // 4:06d}.tar/{index:09d}"
        assert source.fields(index) == {"index": index, "seed": drawn.seeds[index], "label": labels[index]}
        with Image.open(io.BytesIO(source.picture(index))) as stored:
            # Batches of other sizes may round otherwise: codes are the same, a pixel may be one level off.
            assert max(high for _, high in ImageChops.difference(stored, image).getextrema()) <= 1


def test_the_manifest_has_every_shard_and_its_checksum(alone):
    manifest = json.loads((alone / "manifest.json").read_text())
    assert (manifest["pictures"], manifest["seed"], manifest["batch_size"]) == (22, 5, 4)
    assert [entry["pictures"] for entry in manifest["shards"]] == [4, 4, 4, 4, 4, 2]
    for entry in manifest["shards"]:
        data = (alone / entry["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    sums = [line.split("  ") for line in (alone / "SHA256SUMS").read_text().splitlines()]
    assert sums == [[entry["sha256"], entry["file"]] for entry in manifest["shards"]]


@pytest.mark.parametrize("world", [4, 2])
def test_any_number_of_processes_write_the_same_files(alone, tmp_path, world):
    assert finish(start(tmp_path / "samples", world)) == [0] * world
    assert contents(tmp_path / "samples") == contents(alone)


def test_a_killed_job_goes_on_with_another_number_of_processes(alone, tmp_path):
    folder = tmp_path / "samples"
    processes = start(folder, 4)
    wait_for(lambda: len(list(folder.glob("*.tar"))) >= 2)
    for process in processes[::-1]:  # the leader last: nobody is told
        process.kill()
    finish(processes)
    assert not (folder / "manifest.json").exists()
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.tar")}
    assert 2 <= len(before) < 6
    (folder / ".samples-000005.tar.elsewhere-1.partial").write_text("what a killed process leaves")
    assert finish(start(folder, 3)) == [0] * 3
    assert contents(folder) == contents(alone)
    after = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.tar")}
    assert {name: after[name] for name in before} == before, "shards that were there were drawn again"


def test_a_lost_shard_is_drawn_again(alone, tmp_path):
    folder = shutil.copytree(alone, tmp_path / "samples")
    (folder / "samples-000003.tar").unlink()
    drawn = []
    shards = shards_in(folder)
    missing = shards.open(shards.described())
    shards.make(missing, drawn.append)
    shards.close(shards.described())
    assert (missing, sum(drawn)) == ([3], 4)
    assert contents(folder) == contents(alone)


def test_a_shard_that_was_cut_off_is_no_success(alone, tmp_path):
    folder = shutil.copytree(alone, tmp_path / "samples")
    file = folder / "samples-000001.tar"
    file.write_bytes(file.read_bytes()[:-512])
    with pytest.raises(OSError, match=r"samples-000001.tar: expected 5[0-9]+ bytes, as written; got"):
        draw_alone(folder)
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    "change, field",
    [({"seed": 6}, "seed: 5 there, 6 wanted"), ({"batch_size": 2}, "batch_size"), ({"shard_size": 5}, "shard_size"),
     ({"temperature": 0.5}, "temperature"), ({"quantization": "int8"}, "quantization"),
     ({"subjects": Subjects((0, 3), 22)}, "subjects")],
)  # fmt: skip
def test_a_folder_holds_one_set(tmp_path, change, field):
    shards = shards_in(tmp_path)
    shards.open(shards.described())
    other = shards_in(tmp_path, replace(SPEC, **change))
    with pytest.raises(ConfigError, match=f"holds pictures made from something else .*{field}"):
        other.open(other.described())


def test_a_process_that_fails_ends_the_job(tmp_path, monkeypatch):
    def fails(self, shard, samples):
        raise OSError("no space left")

    monkeypatch.setattr(SampleShards, "_write", fails)
    assert all(finish(start(tmp_path / "samples", 2)))
    assert not list((tmp_path / "samples").glob("*.tar"))
    assert not (tmp_path / "samples" / "manifest.json").exists()


@pytest.mark.parametrize(
    "change, message",
    [({"subjects": Subjects((0, 3, 99), 22)}, "class_labels: expected 0 to 9; got 99"),
     ({"top_k": 65}, "top_k: expected"), ({"subjects": Subjects(("a",), 22)}, "expected class_labels; got prompt")],
)  # fmt: skip
def test_what_the_model_does_not_take_is_said_before_a_folder_is_made(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        shards_in(tmp_path / "samples", replace(SPEC, **change))
    assert not (tmp_path / "samples").exists()


def test_subjects_in_turn_and_one_after_the_other(class_pipeline):
    config = class_pipeline.config
    turns = make_subjects(config, [], [], 25)
    assert [turns.at(index) for index in (0, 1, 9, 10, 24)] == [0, 1, 9, 0, 4]
    given = make_subjects(config, [4, 2], [], 3)
    assert (given.total, [given.at(index) for index in range(6)]) == (6, [4, 4, 4, 2, 2, 2])
    assert given.arguments(range(2, 5)) == {"class_labels": [4, 2, 2]}
    prompts = make_subjects(config, [], ["a", "b"], 1)
    assert (prompts.arguments(range(2)), prompts.fields(1)) == ({"prompt": ["a", "b"]}, {"caption": "b"})
    assert (Subjects((), 9).arguments(range(4, 9)), Subjects((), 9).fields(4)) == ({"num_images": 5}, {})


def test_shards_are_tars_without_times_or_owners(alone):
    with tarfile.open(alone / "samples-000000.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members][:2] == ["000000000.png", "000000000.json"]
    assert all((member.mtime, member.uid, member.uname) == (0, 0, "") for member in members)


def test_guidance_is_part_of_a_set_and_reaches_its_pictures(tmp_path):
    demo = HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype="fp32")
    subjects = Subjects(("owl, 3d",), 2)
    led = {"guidance_scale": 3.0, "negative_prompt": "rocket, 3d"}
    plain = SampleShards(tmp_path / "plain", demo, SampleSpec(subjects, batch_size=2))
    guided = SampleShards(tmp_path / "guided", demo, SampleSpec(subjects, batch_size=2, **led))
    assert led.items() <= guided.described().items()
    assert not led.keys() & plain.described().keys()
    made = list(guided._stream(subjects.arguments(range(2)), [1, 2]))
    wanted = demo(
        **subjects.arguments(range(2)), **led, seed=[1, 2], batch_size=2, deterministic="batch", progress=False
    )
    assert [image.image.tobytes() for image in made] == [image.tobytes() for image in wanted.images]
