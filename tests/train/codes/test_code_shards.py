"""Shards of codes: what the VAE gives, whole or absent, the same whether a run was stopped or not."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import golden_pipeline
from PIL import Image

from hqtvae_fast.config import ConfigError
from hqtvae_fast.train.codes.shards import CodeShards
from hqtvae_fast.train.data import PictureDataset, open_source

BROKEN = (3, 4)


@pytest.fixture(scope="module")
def vae():
    return golden_pipeline("class_parallel").vae


@pytest.fixture
def source(tmp_path):
    """Eleven pictures of two classes in two shards, of which two cannot be read."""
    generator = np.random.default_rng(0)
    for shard, indices in enumerate((range(6), range(6, 11))):
        with tarfile.open(tmp_path / f"pictures-{shard}.tar", "w") as tar:
            for index in indices:
                data = io.BytesIO()
                Image.fromarray(generator.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(data, "PNG")
                content = b"no picture" if index in BROKEN else data.getvalue()
                for suffix, member in ((".png", content), (".cls", str(index % 2).encode())):
                    info = tarfile.TarInfo(f"{index:03d}{suffix}")
                    info.size = len(member)
                    tar.addfile(info, io.BytesIO(member))
    return open_source(tmp_path / "pictures-{0..1}.tar")


def read(folder: Path):
    """All samples of the shards in a folder, by WebDataset's rule: a name up to its first dot, and the rest."""
    samples: dict[str, dict[str, bytes]] = {}
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                name, _, kind = member.name.partition(".")
                samples.setdefault(name, {})[kind] = tar.extractfile(member).read()
    return samples


def contents(folder: Path):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_codes_are_the_vaes(source, vae, tmp_path):
    made = CodeShards(tmp_path / "codes", source, vae, 4).make(3)
    assert (made.encoded, made.kept, made.broken) == (9, 0, 2)
    samples, pictures = read(tmp_path / "codes"), PictureDataset(source, 64, training=False)
    assert sorted(samples) == [f"{index:09d}" for index in range(11) if index not in BROKEN]
    for name, sample in samples.items():
        index = int(name)
        assert sorted(sample) == ["json", "level_0.npy", "level_1.npy"]
        fields = json.loads(sample["json"])
        assert fields == {"key": f"pictures-{index // 6}.tar/{index:03d}", "label": index % 2}
        for level, codes in enumerate(vae.encode(pictures.pixels(index)[None])):
            stored = np.load(io.BytesIO(sample[f"level_{level}.npy"]))
            assert stored.dtype == np.uint16
            assert np.array_equal(stored, codes[0].numpy())


def test_shards_are_sized_and_name_their_broken_pictures(source, vae, tmp_path):
    shards = CodeShards(tmp_path / "codes", source, vae, 4)
    shards.make(8)
    assert [len(shards.span(shard)) for shard in range(len(shards))] == [4, 4, 3]
    assert [shards.broken(shard) for shard in range(3)] == [["pictures-0.tar/003"], ["pictures-0.tar/004"], []]
    assert sorted(contents(tmp_path / "codes")) == [
        *("codes-000000.broken.json", "codes-000000.tar", "codes-000001.broken.json", "codes-000001.tar"),
        *("codes-000002.tar", "codes.json"),
    ]


@pytest.mark.parametrize("after", [1, 4, 5, 9])
def test_a_stopped_run_goes_on_and_gives_the_same_files(source, vae, tmp_path, after):
    CodeShards(tmp_path / "whole", source, vae, 4).make(2)
    seen = 0

    def stop(number):
        nonlocal seen
        seen += number
        if seen > after:
            raise KeyboardInterrupt

    shards = CodeShards(tmp_path / "stopped", source, vae, 4)
    with pytest.raises(KeyboardInterrupt):
        shards.make(2, advance=stop)
    assert shards.done() == list(range(after // 4))
    assert not list((tmp_path / "stopped").glob(".*"))  # what was begun is gone
    heard: list[int] = []
    made = CodeShards(tmp_path / "stopped", source, vae, 4).make(2, advance=heard.append)
    assert sum(heard) == 11
    assert made.broken == 2
    assert made.kept == sum(4 - len(shards.broken(shard)) for shard in range(after // 4))
    assert made.encoded + made.kept == 9
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_what_is_done_is_not_done_again(source, vae, tmp_path, monkeypatch):
    CodeShards(tmp_path / "codes", source, vae, 4).make(4)
    monkeypatch.setattr(vae, "encode", lambda images: pytest.fail("encoded again"))
    made = CodeShards(tmp_path / "codes", source, vae, 4).make(4)
    assert (made.encoded, made.kept, made.broken) == (0, 9, 2)


def test_workers_and_batches_change_nothing(source, vae, tmp_path):
    CodeShards(tmp_path / "one", source, vae, 6).make(1)
    CodeShards(tmp_path / "two", source, vae, 6).make(4, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_another_models_or_other_folders_are_refused(source, vae, tmp_path):
    CodeShards(tmp_path / "codes", source, vae, 4)
    with pytest.raises(ConfigError, match=r"holds codes made from something else \(shard_size: 4 there, 5 wanted\)"):
        CodeShards(tmp_path / "codes", source, vae, 5)
    with pytest.raises(ConfigError, match=r"something else \(vae: "):
        CodeShards(tmp_path / "codes", source, golden_pipeline("class_sequential").vae, 4)
    with pytest.raises(ConfigError, match=r"expected an empty folder or one with codes\.json; it holds other shards"):
        CodeShards(tmp_path, source, vae, 4)
    (tmp_path / "codes" / "codes.json").write_text("{}")
    with pytest.raises(ConfigError, match="expected 'hqtvae_fast code shards, version 1'"):
        CodeShards(tmp_path / "codes", source, vae, 4)


def test_many_codes_take_wider_numbers(source, vae, tmp_path):
    shards = CodeShards(tmp_path / "codes", source, vae, 4)
    high = torch.full((1, 2, 2), 70_000)
    config = type("Config", (), {"codebook_sizes": (2**16, 2**17)})
    shards.vae = type("Vae", (), {"config": config})
    narrow, wide = shards._codes([high, high], 0)
    assert (narrow.dtype, wide.dtype) == (np.uint16, np.int32)
    assert int(wide[0, 0]) == 70_000
