"""Shards of codes as a run's data: nothing need be said that they tell, held-out ones are read as well, and a part of a
set reads what is stored of the whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="training needs the train extra")

from accelerate import Accelerator
from conftest import GOLDEN
from small_runs import BLOCKS, COMMON, losses, same, weights, write_pictures

from hqtvae_fast import checkpoint
from hqtvae_fast.cli import main
from hqtvae_fast.config import ConfigError
from hqtvae_fast.train.codes.build import open_code_cache
from hqtvae_fast.train.codes.cache import join_codes
from hqtvae_fast.train.codes.shards import CodeShards
from hqtvae_fast.train.codes.stored import codes_as_data, part_of, settle
from hqtvae_fast.train.config import Stage2Run, completed, read_run
from hqtvae_fast.train.data import PictureDataset, Selection, open_source, select
from hqtvae_fast.train.presets import load_size
from hqtvae_fast.train.run import train_stage2

MODEL = {"dim": 32, "num_classes": 2, "body": BLOCKS, "head": BLOCKS}
STILL = {**BLOCKS, "residual_dropout": 0.0}


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    """A stage 1 of 64x64 alone, where a run may find it."""
    made = checkpoint.load(GOLDEN / "class_parallel")
    alone = checkpoint.Checkpoint(checkpoint.HQTVAEConfig(vae=made.config.vae, transformer=None), made.vae, None)
    directory = tmp_path_factory.mktemp("vae") / "model"
    checkpoint.save(alone, directory)
    return directory


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), (64, 64))


def encode(pictures: Path, vae: Path, folder: Path) -> Path:
    CodeShards(folder, open_source(pictures), checkpoint.load(vae).vae, 8, checkpoint=str(vae)).make(10)
    return folder


@pytest.fixture(scope="module")
def codes(pictures, vae, tmp_path_factory) -> Path:
    return encode(pictures, vae, tmp_path_factory.mktemp("shards") / "codes")


def on_codes(codes: Path, out: Path, **changes) -> Stage2Run:
    values = {**COMMON, "data": str(codes), "out": str(out), "model": MODEL, "steps": 3, "learning_rate": 1e-3}
    return read_run(Stage2Run, None, {**values, **changes})


def figures(out: Path, name: str) -> list[float]:
    return [row[name] for row in losses(out) if name in row]


# ---------------------------------------------------------------------------------------------------- what codes decide


def test_codes_alone_are_enough(pictures, codes, vae, tmp_path, capsys):
    train_stage2(on_codes(codes, tmp_path / "short", flip=True))
    told = capsys.readouterr().err
    assert "soft_labels: off, as the data are codes" in told
    assert "flip: off, as the data are codes" in told
    assert f"vae: {vae}, which made the codes" in told
    said = {"soft_labels": 0.0, "vae": str(vae)}
    train_stage2(on_codes(codes, tmp_path / "long", **said))
    assert "as the data are codes" not in capsys.readouterr().err
    train_stage2(on_codes(pictures, tmp_path / "cached", code_cache=str(codes), vae=str(vae)))
    assert "soft_labels: off, as the data are codes" in capsys.readouterr().err
    for other in ("long", "cached"):
        assert figures(tmp_path / other, "loss") == figures(tmp_path / "short", "loss")
    assert len(set(figures(tmp_path / "short", "loss"))) == 3


@pytest.mark.parametrize("captions", [pytest.param(False, marks=pytest.mark.slow), True])
def test_condition_and_names_are_the_codes(pictures, codes, vae, tmp_path, captions):
    if captions:
        folder = tmp_path / "captioned"
        shutil.copytree(pictures / "dark", folder)
        words = {f"1{index}.png": f"number {index} in the dark" for index in range(10)}
        (folder / "captions.json").write_text(json.dumps(words))
        codes = encode(folder, vae, tmp_path / "codes")
    blocks = {"dim": 32, "body": STILL, "head": STILL}
    train_stage2(on_codes(codes, tmp_path / "run", model=blocks, picture_every=3))
    made = checkpoint.load(tmp_path / "run" / "model")
    assert made.transformer.config.condition == ("text" if captions else "class")
    assert made.config.id2label == (() if captions else ("bright", "dark"))
    assert (made.tokenizer_file is not None) == captions
    assert list((tmp_path / "run" / "pictures").iterdir())


def test_a_run_on_codes_goes_on_where_it_was_stopped(codes, tmp_path):
    model = {**MODEL, "body": STILL, "head": STILL}
    train_stage2(on_codes(codes, tmp_path / "whole", model=model))
    for _ in range(3):
        train_stage2(on_codes(codes, tmp_path / "parts", model=model, stop_after=1))
    assert figures(tmp_path / "parts", "loss") == figures(tmp_path / "whole", "loss")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_the_whole_run_takes_codes_too(codes, vae, tmp_path, capsys):
    """Stage 1 is what made them."""
    from hqtvae_fast.train.whole import train_whole

    found = train_whole({"data": str(codes), "out": str(tmp_path / "run"), "steps": 1, "workers": 0})
    assert found == tmp_path / "run" / "model"
    assert f"vae: {vae}, which made the codes" in capsys.readouterr().err
    assert not (tmp_path / "run" / "stage1").exists()


def test_a_tau_that_was_named_is_refused(codes, tmp_path):
    with pytest.raises(ConfigError, match=r"^soft_labels: expected 0 with codes as data, .* got codes in "):
        train_stage2(on_codes(codes, tmp_path / "run", soft_labels=1.0))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", ["S", "S-onehot"])
def test_a_preset_names_none_where_the_default_is_the_papers(preset):
    run = read_run(Stage2Run, None, {"data": "pictures", "vae": "vae", "out": "run"}, preset)
    assert run.tau == (1.0 if preset == "S" else None)


def test_tau_tells_not_given_from_off():
    def run(**changes):
        return read_run(Stage2Run, None, {"data": "a", "vae": "b", "out": "c", "steps": 1, **changes})

    assert (run().soft_labels, run().tau) == (None, 1.0)
    assert (run(soft_labels=0).soft_labels, run(soft_labels=0).tau) == (0.0, None)
    assert run(soft_labels=0.5).tau == 0.5


def test_pictures_without_a_vae_are_refused_before_anything_is_made(pictures, tmp_path):
    with pytest.raises(ConfigError, match=r"^vae: expected the checkpoint directory of a trained stage 1; got none$"):
        train_stage2(on_codes(pictures, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_checkpoint_that_made_the_codes_may_have_gone_or_changed(pictures, vae, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(vae, own)
    codes = encode(pictures, own, tmp_path / "codes")
    changed = checkpoint.load(own)
    changed.vae.codebooks[0].embedding += 1
    checkpoint.save(changed, own)
    with pytest.raises(ConfigError, match=rf"got another one's, \w{{16}}, made by {own} as it was then$"):
        train_stage2(on_codes(codes, tmp_path / "run"))
    shutil.rmtree(own)
    with pytest.raises(ConfigError, match=rf"^vae: .*{own}, which made the codes in {codes}.*; got no such directory"):
        train_stage2(on_codes(codes, tmp_path / "run"))
    train_stage2(on_codes(codes, tmp_path / "run", vae=str(vae), steps=1))


def test_codes_remember_their_checkpoint_and_it_may_move(pictures, vae, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(vae, "here")
    arguments = [str(pictures), "--shards", "codes", "--device", "cpu"]
    assert main(["encode", "here", *arguments]) == 0
    spec = json.loads(Path("codes/codes.json").read_text())
    assert spec["checkpoint"] == str(tmp_path / "here")
    shutil.move("here", "there")
    assert main(["encode", "there", *arguments]) == 0  # the same weights: the same codes
    assert json.loads(Path("codes/codes.json").read_text()) == {**spec, "checkpoint": str(tmp_path / "there")}
    capsys.readouterr()


def test_the_command_needs_the_codes_alone(codes, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({**COMMON, "model": MODEL}))
    arguments = ["--data", str(codes), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main(["train", "stage2", str(file), *arguments]) == 0, capsys.readouterr().err
    assert checkpoint.load(tmp_path / "run" / "model").transformer is not None


# -------------------------------------------------------------------------------------------------------- a part of it


@pytest.mark.parametrize("soft_labels", [False, True])
def test_a_part_reads_what_is_stored_of_the_whole(pictures, codes, vae, tmp_path, soft_labels):
    whole, model = open_source(pictures), checkpoint.load(vae).vae
    wishes = {"soft_labels": soft_labels, "mirrored": False}
    stored = open_code_cache(tmp_path / "cache", Accelerator(cpu=True), model, whole, **wishes)
    assert part_of(stored, whole, whole) is stored
    part = select(whole, {"class_name": ["dark"]})
    inner = Selection(part, [7, 2])
    assert stored.content == part_of(stored, inner, whole).content == ("latents" if soft_labels else "codes")
    assert torch.equal(part_of(stored, inner, whole).read(0, False), stored.read(17, False))
    assert torch.equal(part_of(stored, inner, whole).read(1, False), stored.read(12, False))
    with pytest.raises(ValueError, match="expected a part of the pictures that are stored"):
        part_of(stored, open_source(pictures), whole)


def test_codes_as_data_of_a_part_of_a_part(codes, vae):
    model, source = checkpoint.load(vae).vae, open_source(codes, codes=True)
    wishes = {"soft_labels": False, "mirrored": False}
    whole = codes_as_data(source, model, **wishes)
    inner = Selection(select(source, {"class_name": ["dark"]}), [7, 2])
    own = codes_as_data(inner, model, **wishes)
    assert torch.equal(own.read(0, False), whole.read(17, False))
    assert torch.equal(own.read(1, False), whole.read(12, False))


# ------------------------------------------------------------------------------------------------------------ held out


def test_held_out_codes_give_the_losses_of_their_pictures(pictures, codes, vae, tmp_path):
    model = {**MODEL, "body": STILL, "head": STILL}
    common = {"validate_every": 1, "vae": str(vae), "soft_labels": 0.0, "model": model, "validation_pictures": 7}
    train_stage2(on_codes(codes, tmp_path / "codes", validation=str(codes), **common))
    train_stage2(on_codes(codes, tmp_path / "pictures", validation=str(pictures), **common))
    found = figures(tmp_path / "codes", "val_loss")
    assert len(found) == 3
    assert found == pytest.approx(figures(tmp_path / "pictures", "val_loss"), rel=1e-6)


@pytest.mark.parametrize("cached", [False, True])
def test_a_tenth_is_held_out_of_codes_and_of_caches(pictures, codes, vae, tmp_path, cached):
    """The same pictures, from codes as from pixels."""
    model = {**MODEL, "body": STILL, "head": STILL}
    common = {"validate_every": 1, "validation": [], "vae": str(vae), "soft_labels": 0.0, "model": model}
    cache = {"code_cache": str(tmp_path / "cache")} if cached else {}
    train_stage2(on_codes(pictures if cached else codes, tmp_path / "codes", **cache, **common))
    train_stage2(on_codes(pictures, tmp_path / "pictures", **common))
    found = figures(tmp_path / "codes", "val_loss")
    assert len(found) == 3
    assert found == pytest.approx(figures(tmp_path / "pictures", "val_loss"), rel=1e-6)


def test_what_is_picked_to_fit_does_not_undo_what_codes_decide(codes):
    source = open_source(codes, codes=True)
    run, _ = settle(read_run(Stage2Run, None, {"data": str(codes), "out": "out"}), source)
    for size in ("tiny", "small"):
        fields = {**load_size(size, "stage2"), "flip": True}
        picked = completed(run, fields)
        assert (picked.flip, picked.tau, picked.batch_size) == (False, None, fields["batch_size"])


@pytest.mark.parametrize("soft_labels", [0.0, 1.0])
def test_a_held_out_part_is_read_from_the_cache(pictures, vae, tmp_path, soft_labels):
    from hqtvae_fast.train.stage2 import Stage2, Stage2Settings
    from hqtvae_fast.train.validation import HeldOut

    torch.manual_seed(0)
    whole, model = open_source(pictures), checkpoint.load(vae).vae
    accelerator = Accelerator(cpu=True)
    stored = open_code_cache(
        tmp_path / "cache", accelerator, model, whole, soft_labels=bool(soft_labels), mirrored=False
    )
    part = Selection(whole, [3, 8, 11])
    transformer = checkpoint.load(GOLDEN / "class_parallel").transformer
    settings = Stage2Settings(steps=1, soft_labels=soft_labels or None)

    def validated(own):
        held_out = HeldOut(
            PictureDataset(part, 64, condition="class", training=False, stored=own), limit=8, batch_size=2
        )
        return Stage2(accelerator, model, transformer, settings, held_out=held_out).validate()

    found = validated(part_of(stored, part, whole))
    assert found == pytest.approx(validated(None), rel=1e-5)


def test_held_out_codes_tell_no_soft_labels(pictures, codes, vae, tmp_path):
    with pytest.raises(ConfigError, match=r"^validation: expected pictures, or soft_labels 0; got codes in "):
        train_stage2(on_codes(pictures, tmp_path, vae=str(vae), validation=str(codes)))


def test_held_out_codes_of_other_labels_are_refused(pictures, codes, vae, tmp_path):
    shutil.copytree(pictures / "dark", tmp_path / "held" / "dark")
    other = encode(tmp_path / "held", vae, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"^validation: expected codes labelled as the data .*; got dark in "):
        train_stage2(on_codes(codes, tmp_path / "run", validation=str(other)))


def test_joined_codes_are_what_was_encoded(pictures, codes, vae):
    model, source = checkpoint.load(vae).vae.eval(), open_source(codes, codes=True)
    stored = codes_as_data(source, model, soft_labels=False, mirrored=False)
    dataset = PictureDataset(open_source(pictures), 64, training=False)
    with torch.no_grad():
        assert torch.equal(stored.read(5, False), join_codes(model.encode(dataset[5].image[None]))[0])
