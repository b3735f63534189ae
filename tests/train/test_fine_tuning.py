"""Runs on a part of the pictures, and runs that begin with a checkpoint's weights."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import losses, same, stage1, stage2, weights, write_pictures

from hqtvae_fast import checkpoint
from hqtvae_fast.config import ConfigError
from hqtvae_fast.train.data import open_source, select
from hqtvae_fast.train.run import train_stage1, train_stage2

STYLES = ("noto", "fluent", "noto", "twemoji", "noto", "fluent")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    """Six pictures with a style, a list of keywords and a caption each; the last one's fields are no JSON."""
    file = tmp_path_factory.mktemp("shards") / "train.tar"
    with tarfile.open(file, "w") as tar:
        for index, style in enumerate(STYLES):
            picture = io.BytesIO()
            Image.new("RGB", (16, 16), (40 * index, 0, 0)).save(picture, "PNG")
            fields = {"style": style, "keywords": ["all", f"k{index}"], "size": index % 2, "caption": f"number {index}"}
            data = b"{" if index == 5 else json.dumps(fields).encode()
            for suffix, content in (("png", picture.getvalue()), ("json", data)):
                member = tarfile.TarInfo(f"{index}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Path:
    """Both stages on class folders."""
    root = tmp_path_factory.mktemp("trained")
    train_stage1(stage1(pictures, root / "vae", steps=2))
    train_stage2(stage2(pictures, root / "vae" / "model", root / "hqt", steps=2))
    return root


@pytest.mark.parametrize(
    "wanted,indices",
    [
        ({"style": ["noto"]}, [0, 2, 4]),
        ({"style": ["fluent", "twemoji"]}, [1, 3]),
        ({"style": ["noto"], "size": [0]}, [0, 2, 4]),
        ({"style": ["fluent"], "size": [1]}, [1]),
        ({"keywords": ["k3", "k4"]}, [3, 4]),
    ],
)
def test_pictures_are_selected_by_their_fields(shard, wanted, indices):
    source = open_source(shard)
    part = select(source, wanted)
    assert len(part) == len(indices)
    assert [part.key(place) for place in range(len(part))] == [source.key(index) for index in indices]
    assert [part.fields(place) for place in range(len(part))] == [source.fields(index) for index in indices]
    assert [part.picture(place) for place in range(len(part))] == [source.picture(index) for index in indices]


def test_no_wish_selects_all(shard):
    source = open_source(shard)
    assert select(source, {}) is source


def test_a_part_has_a_fingerprint_of_its_own(shard):
    source = open_source(shard)
    wishes = ({"style": ["noto"]}, {"style": ["fluent"]}, {"style": ["noto"], "size": [0]})
    marks = [select(source, wanted).fingerprint() for wanted in wishes]
    assert marks[0] == marks[2]  # the same pictures
    assert len({source.fingerprint(), *marks}) == 3


def test_a_selection_of_nothing_names_what_there_is(shard):
    with pytest.raises(ValueError, match="style in 'tango'; got none, with style: 'noto', 'fluent', 'twemoji'"):
        select(open_source(shard), {"style": ["tango"]})


def test_a_run_on_a_part(pictures, tmp_path):
    train_stage1(stage1(pictures, tmp_path, steps=1, select={"class_name": "dark"}, validation=str(pictures)))
    assert len(losses(tmp_path)) == 1
    with pytest.raises(ValueError, match="select: expected pictures with class_name in 'grey'"):
        train_stage1(stage1(pictures, tmp_path / "none", steps=1, select={"class_name": ["grey"]}))


def test_a_run_begins_with_a_checkpoints_weights(pictures, trained, tmp_path):
    """A rate of zero leaves them as they are."""
    still = {"steps": 1, "learning_rate": 0.0}
    train_stage2(stage2(pictures, "", tmp_path / "hqt", init=str(trained / "hqt" / "model"), **still))
    assert same(weights(tmp_path / "hqt"), weights(trained / "hqt"))
    train_stage1(stage1(pictures, tmp_path / "vae", init=str(trained / "vae" / "model"), **still))
    before, after = (weights(root / "vae") for root in (trained, tmp_path))
    names = [name for name in before if "encoder" in name or "decoder" in name]
    assert names
    assert all(torch.equal(before[name], after[name]) for name in names)


def test_weights_in_half_precision_are_taken_too(pictures, trained, tmp_path):
    made = checkpoint.load(trained / "hqt" / "model")
    made.transformer.half()  # codes never used lie far out after two updates, beyond fp16
    checkpoint.save(made, tmp_path / "half")
    train_stage2(stage2(pictures, "", tmp_path / "hqt", init=str(tmp_path / "half"), steps=1, learning_rate=0.0))
    after = weights(tmp_path / "hqt")
    assert {value.dtype for value in after.values()} == {torch.float32}
    halved = {name: value.half().float() for name, value in weights(trained / "hqt").items() if "transformer" in name}
    assert halved
    assert all(torch.equal(value, after[name]) for name, value in halved.items())


def test_its_tokenizer_comes_along(shard, trained, tmp_path):
    text = {"model": {**stage2("x", "x", "x").model, "condition": "text", "prefix_length": 4, "prefix_vocab_size": 64}}
    common = {"steps": 1, "select": {"size": [0, 1]}, "batch_size": 2, **text}
    train_stage2(stage2(shard, trained / "vae" / "model", tmp_path / "first", vocab_size=40, **common))
    again = {**common, "select": {"size": [1]}, "init": str(tmp_path / "first" / "model")}
    train_stage2(stage2(shard, trained / "vae" / "model", tmp_path / "second", **again))
    first, second = ((tmp_path / name / "model" / "tokenizer.json").read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"model": {"dim": 48, "body": {"num_heads": 3}}}, r"model\.dim: expected 32, as .* has, .*; got 48"),
        ({"model": {"body": {"num_layers": 2}}}, r"model\.body\.num_layers: expected 1, as .* has, .*; got 2"),
    ],
)
def test_other_sizes_are_refused(pictures, trained, tmp_path, changes, message):
    model = stage2("x", "x", "x").model
    changed = {**model, **changes["model"], "body": {**model["body"], **changes["model"]["body"]}}
    if "dim" in changes["model"]:
        changed["head"] = {**model["head"], "num_heads": 3}
    with pytest.raises(ConfigError, match=message):
        train_stage2(stage2(pictures, "", tmp_path, init=str(trained / "hqt" / "model"), model=changed))


def test_a_checkpoint_without_stage_2_is_refused(pictures, trained, tmp_path):
    with pytest.raises(ConfigError, match=r"init: expected a checkpoint with stage 2; got .*, with stage 1 only"):
        train_stage2(stage2(pictures, "", tmp_path, init=str(trained / "vae" / "model")))
