"""The code cache: training from it is training from the pictures, and another set's or VAE's cache is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

pytest.importorskip("accelerate", reason="training needs the train extra")

from accelerate import Accelerator
from small_runs import losses, same, stage1, stage2, weights, write_pictures

from hqtvae_fast import checkpoint
from hqtvae_fast.train.codes import build
from hqtvae_fast.train.codes.build import open_code_cache
from hqtvae_fast.train.codes.cache import join_codes, split_codes, vae_hash
from hqtvae_fast.train.data import PictureDataset, UnreadableError, open_source
from hqtvae_fast.train.data.sources import Folder
from hqtvae_fast.train.run import train_stage1, train_stage2
from hqtvae_fast.train.stage2 import Stage2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Square ones: the centre is all there is to crop."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), (20, 20))


@pytest.fixture(scope="module")
def trained_vae(pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    train_stage1(stage1(pictures, out, steps=2))
    return out / "model"


@pytest.fixture
def broken(tmp_path) -> Path:
    """The same pictures, two of which are none."""
    root = write_pictures(tmp_path / "broken", (20, 20))
    for name in ("bright/03.png", "bright/04.png"):
        (root / name).write_bytes(b"no picture")
    return root


def make(file, pictures, trained_vae, *, soft_labels=True, mirrored=False):
    vae = checkpoint.load(trained_vae).vae
    return open_code_cache(
        file, Accelerator(cpu=True), vae, open_source(pictures), soft_labels=soft_labels, mirrored=mirrored
    )


def assert_equal_rows(left: Path, right: Path) -> None:
    for one, two in zip(losses(left), losses(right), strict=True):
        assert one == pytest.approx(two, rel=1e-6)


@pytest.mark.parametrize("soft_labels", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
@pytest.mark.parametrize("flip", [False, True])
def test_losses_are_those_of_pictures(pictures, trained_vae, tmp_path, soft_labels, flip):
    changes = {"soft_labels": soft_labels, "flip": flip}
    train_stage2(stage2(pictures, trained_vae, tmp_path / "pictures", **changes))
    cache = str(tmp_path / "made" / "codes.safetensors")
    train_stage2(stage2(pictures, trained_vae, tmp_path / "cached", code_cache=cache, **changes))
    assert_equal_rows(tmp_path / "cached", tmp_path / "pictures")
    assert set(load_file(cache)) == {"latents" if soft_labels else "codes", "broken"}


def test_pictures_are_not_opened_again(pictures, trained_vae, tmp_path, monkeypatch):
    run = stage2(pictures, trained_vae, tmp_path / "run", code_cache=str(tmp_path / "codes"), stop_after=1, workers=1)
    train_stage2(run)
    monkeypatch.setattr(Folder, "picture", None)
    train_stage2(stage2(pictures, trained_vae, tmp_path / "run", code_cache=str(tmp_path / "codes"), workers=1))
    assert [row["step"] for row in losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_after_a_kill(pictures, trained_vae, tmp_path, monkeypatch):
    cache = {"code_cache": str(tmp_path / "codes")}
    train_stage2(stage2(pictures, trained_vae, tmp_path / "whole", **cache))
    original = Stage2.update

    def kill(self, batches, step):
        if step == 5:
            raise KeyboardInterrupt
        return original(self, batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(Stage2, "update", kill)
        with pytest.raises(KeyboardInterrupt):
            train_stage2(stage2(pictures, trained_vae, tmp_path / "killed", **cache))
    train_stage2(stage2(pictures, trained_vae, tmp_path / "killed", **cache))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_a_broken_picture_is_replaced_as_without_a_cache(broken, trained_vae, tmp_path, capsys):
    train_stage2(stage2(broken, trained_vae, tmp_path / "pictures"))
    train_stage2(stage2(broken, trained_vae, tmp_path / "cached", code_cache=str(tmp_path / "codes")))
    assert_equal_rows(tmp_path / "cached", tmp_path / "pictures")
    assert "2 of 20 pictures are broken" in capsys.readouterr().err
    cache = make(tmp_path / "codes", broken, trained_vae)
    with pytest.raises(UnreadableError):
        cache.read(3, False)
    from_pictures, from_cache = (
        PictureDataset(open_source(broken), 16, training=False, stored=stored)[3] for stored in (None, cache)
    )
    assert from_cache.key == from_pictures.key == "bright/05.png"
    assert from_cache.broken == from_pictures.broken == ("bright/03.png", "bright/04.png")


@torch.no_grad()
def test_what_is_stored(pictures, trained_vae, tmp_path, capsys):
    vae = checkpoint.load(trained_vae).vae.eval()
    dataset = PictureDataset(open_source(pictures), 16, training=False)
    images = torch.stack([dataset[index].image for index in range(20)])
    soft = make(tmp_path / "soft", pictures, trained_vae, mirrored=True)
    hard = make(tmp_path / "hard", pictures, trained_vae, soft_labels=False)
    told = capsys.readouterr().err
    assert "latents of 20 pictures x 2, 20,500 bytes (1,024 a picture)" in told
    assert "codes of 20 pictures x 1, 820 bytes (40 a picture)" in told
    assert (tmp_path / "hard").stat().st_size - 820 < 600  # the header
    assert load_file(tmp_path / "hard")["codes"].dtype == np.int16
    for mirrored in (False, True):
        seen = images.flip(-1) if mirrored else images
        z = torch.stack([soft.read(index, mirrored) for index in range(20)])
        assert float((z - vae.latents(seen)).abs().max()) < 1e-5
        for level, codes in zip(vae.quantize(z), vae.encode(seen), strict=True):
            assert torch.equal(level.codes, codes)
    joined = torch.stack([hard.read(index, False) for index in range(20)])
    for found, codes in zip(split_codes(joined, vae.config.level_sides), vae.encode(images), strict=True):
        assert torch.equal(found, codes)
    again = pickle.loads(pickle.dumps(soft))
    assert torch.equal(again.read(7, True), soft.read(7, True))


def test_codes_join_and_split():
    codes = [torch.arange(8).view(2, 2, 2), torch.arange(32).view(2, 4, 4)]
    for part, original in zip(split_codes(join_codes(codes).short(), (2, 4)), codes, strict=True):
        assert torch.equal(part, original)


def test_a_cache_with_more_than_is_needed(pictures, trained_vae, tmp_path):
    make(tmp_path / "codes", pictures, trained_vae, mirrored=True)
    changed = (tmp_path / "codes").stat().st_mtime_ns
    cache = make(tmp_path / "codes", pictures, trained_vae, soft_labels=False)
    assert cache.content == "latents"
    train_stage2(stage2(pictures, trained_vae, tmp_path / "a", soft_labels=0.0, code_cache=str(tmp_path / "codes")))
    train_stage2(stage2(pictures, trained_vae, tmp_path / "b", soft_labels=0.0))
    assert_equal_rows(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "codes").stat().st_mtime_ns == changed


def test_other_pictures_vae_or_content(pictures, trained_vae, tmp_path):
    file = tmp_path / "codes"
    make(file, pictures, trained_vae, soft_labels=False)
    with pytest.raises(
        ValueError, match=r"codes: .* expected data \w+, pictures 10; got data \w+, pictures 20\. Remove"
    ):
        make(file, pictures / "dark", trained_vae, soft_labels=False)
    with pytest.raises(ValueError, match="expected content latents; got content codes"):
        make(file, pictures, trained_vae)
    with pytest.raises(ValueError, match="expected mirrored true; got mirrored false"):
        make(file, pictures, trained_vae, soft_labels=False, mirrored=True)
    train_stage1(stage1(pictures, tmp_path / "vae", steps=1))
    with pytest.raises(ValueError, match=r"expected vae \w{16}; got vae \w{16}"):
        make(file, pictures, tmp_path / "vae" / "model", soft_labels=False)


def test_the_hash_is_of_what_codes_depend_on(trained_vae):
    vae = checkpoint.load(trained_vae).vae
    before = vae_hash(vae)
    vae.decoder.conv_in.weight.data += 1
    vae.codebooks[0].cluster_size += 1
    assert vae_hash(vae) == before
    vae.codebooks[1].embedding += 1e-3
    assert vae_hash(vae) != before


def test_files_that_are_no_cache(pictures, trained_vae, tmp_path):
    whole = tmp_path / "whole"
    make(whole, pictures, trained_vae)
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "text").write_text("not a cache")
    for name in ("cut", "text"):
        with pytest.raises(ValueError, match=f"{name}: not a code cache, or a damaged one"):
            make(tmp_path / name, pictures, trained_vae)
    with pytest.raises(ValueError, match="expected format hqtvae_fast code cache, version 1"):
        make(trained_vae / "model.safetensors", pictures, trained_vae)
    with pytest.raises(ValueError, match="expected a code cache, a file; got a folder"):
        make(tmp_path, pictures, trained_vae)


def test_an_interrupted_build_leaves_nothing(pictures, trained_vae, tmp_path, monkeypatch):
    original, calls = build.picture_latents, []

    def interrupt(vae, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(vae, images)

    monkeypatch.setattr(build, "BATCH", 8)
    with monkeypatch.context() as patch:
        patch.setattr(build, "picture_latents", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "cache" / "codes", pictures, trained_vae)
    assert calls == [8, 8, 4]
    assert list((tmp_path / "cache").iterdir()) == []
    assert make(tmp_path / "cache" / "codes", pictures, trained_vae).broken == 0


def test_a_full_disk(pictures, trained_vae, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="expected 10,260 bytes of free space for the code cache; got 10,000"):
        make(tmp_path / "codes", pictures, trained_vae)
