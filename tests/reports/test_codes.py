"""Codes from wherever they come: any width of integer is the same codes, and shards of codes are read by every command
that takes codes."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_pipeline
from PIL import Image

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.cli import main
from hqtvae_fast.cli.codes import read_codes
from hqtvae_fast.codes import read_level, read_levels
from hqtvae_fast.compat import sampling_ihqgpt
from hqtvae_fast.config import ConfigError
from hqtvae_fast.engine import SamplingParams, draw_codes
from hqtvae_fast.request import read_given_codes
from hqtvae_fast.train.codes.cache import CacheSpec, CodeCache, join_codes, vae_hash
from hqtvae_fast.train.codes.shards import CodeShards
from hqtvae_fast.train.codes.stored import codes_as_cache, codes_as_data
from hqtvae_fast.train.data import CodedPictures, PictureDataset, open_source, select

CASE = "class_parallel"
NARROW = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]
NUMPY = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@pytest.fixture
def pipe():
    return golden_pipeline(CASE)


def full(code):
    return [torch.full((1, 4, 4), code), torch.full((1, 8, 8), code)]


def narrowed(level, dtype):
    if isinstance(dtype, torch.dtype):
        return level.to(dtype)
    return level.tolist() if dtype is list else level.numpy().astype(dtype)


@pytest.mark.parametrize("dtype", [*NARROW, *NUMPY, list])
def test_F13_any_width_is_the_same_codes(pipe, dtype):
    codes, config = full(63), pipe.config.vae
    found, count = read_levels([narrowed(level, dtype) for level in codes], config)
    assert count == 1
    assert all(map(torch.equal, found, codes))
    assert torch.equal(read_given_codes(config, narrowed(codes[0][0], dtype)), codes[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, np.uint16])
def test_F13_whatever_takes_codes_takes_any_width(pipe, dtype):
    codes = full(63)
    own = [narrowed(level, dtype) for level in codes]
    assert np.array_equal(pipe.decode(own, "np"), pipe.decode(codes, "np"))
    draw = {"class_labels": 1, "output_type": "codes", "progress": False}
    expected = pipe(**draw, given_top_codes=codes[0]).codes
    assert all(map(torch.equal, pipe(**draw, given_top_codes=own[0]).codes, expected))
    with torch.no_grad():
        assert torch.equal(pipe.vae.decode(own), pipe.vae.decode(codes))
        logits = pipe.transformer(own, torch.tensor([1], dtype=torch.int16))
        plain = pipe.transformer(codes, torch.tensor([1]))
    assert all(map(torch.equal, logits.levels, plain.levels))
    params = SamplingParams((1.0, 1.0), (None, None), (None, None))
    drawn = draw_codes(pipe.transformer, torch.tensor([1]), torch.tensor([0]), params, given_top_codes=own[0])
    assert all(map(torch.equal, drawn, expected))


@pytest.mark.parametrize("value", [64, -1, 2**31, 2**63])
def test_F13_codes_out_of_range_are_named_in_any_width(pipe, value):
    wide = np.full((1, 4, 4), value, np.uint64 if value > 0 else np.int64)
    for call in (lambda: pipe.decode([wide, None]), lambda: pipe(1, given_top_codes=wide, progress=False)):
        with pytest.raises(ValueError, match=r"^(codes of level 0|given_top_codes): expected codes from 0 to 63; got "):
            call()


def test_F13_a_transformer_refuses_codes_out_of_range(pipe):
    with pytest.raises(ValueError, match=r"^codes of level 0: expected codes from 0 to 63; got 64 to 64$"):
        pipe.transformer([full(64)[0], full(1)[1]], torch.tensor([1]))


@pytest.mark.parametrize(
    "codes, message",
    [
        ([torch.zeros(1, 4, 4), None], r"codes of level 0: expected integers \[B, 4, 4\]; got float32 \[1, 4, 4\]"),
        ([torch.zeros(1, 4, 4, dtype=torch.bool), None], "codes of level 0: expected integers .*; got bool"),
        ([None, [["a"]]], r"codes of level 1: expected integers \[B, 8, 8\]"),
        ([torch.zeros(4, 4, dtype=torch.int64), None], r"codes of level 0: expected \[B, 4, 4\]; got \[4, 4\]"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), r"codes: expected 2 levels .*; got a tensor \[2, 1, 4, 4\]"),
        ([None, None], "codes: expected at least one level and one batch size; got"),
    ],
)
def test_F13_what_are_no_codes_is_named(pipe, codes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        pipe.decode(codes)


def test_F13_one_checker_widens_and_compares():
    found = read_level("level_0", np.full((2, 3, 3), 255, np.uint8), 3, 256)
    assert found.dtype is torch.int64
    assert int(found.max()) == 255
    with pytest.raises(ValueError, match=r"^a file: expected at least one level and one batch size; got \[1, 2\]$"):
        read_levels([full(1)[0], torch.cat([full(1)[1]] * 2)], golden_pipeline(CASE).config.vae, "a file")


@pytest.mark.slow  # torch.export imports a compiler
def test_F13_decoding_can_be_exported(pipe):
    class Decoding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = pipe.vae

        def forward(self, top, bottom):
            return self.vae.decode([top, bottom])

    exported = torch.export.export(Decoding(), tuple(full(3)))  # the range check has no values to look at
    with torch.no_grad():
        assert torch.allclose(exported.module()(*full(5)), pipe.vae.decode(full(5)), atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- shards

BROKEN = 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four pictures of each of two classes, one of them broken."""
    root, generator = tmp_path_factory.mktemp("set") / "pictures", np.random.default_rng(0)
    for index in range(8):
        file = root / ("bright", "dark")[index // 4] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(file)
    (root / "bright" / f"{BROKEN}.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def codes(pictures):
    """Their codes, as encode --shards leaves them."""
    folder = pictures.parent / "codes"
    CodeShards(folder, open_source(pictures), golden_pipeline(CASE).vae, 3).make(4)
    return folder


def of_pictures(pictures):
    """What the VAE says, read by itself."""
    dataset = PictureDataset(open_source(pictures), 64, training=False)
    return {
        dataset.source.key(index): golden_pipeline(CASE).vae.encode(dataset.pixels(index)[None])
        for index in range(8)
        if index != BROKEN
    }


def test_F13_shards_of_codes_are_a_source(pictures, codes, pipe):
    source, expected = open_source(codes, codes=True), of_pictures(pictures)
    assert isinstance(source, CodedPictures)
    assert len(source) == 7
    config = pipe.config.vae
    for index in range(len(source)):
        fields = source.fields(index)
        assert fields["label"] == int(fields["class_name"] == "dark")
        found = source.codes(index, config.level_sides, config.codebook_sizes)
        assert all(map(torch.equal, found, [level[0] for level in expected[fields["key"]]]))
    one = open_source(codes / "codes-000002.tar", codes=True)
    assert one.key(0) == "codes-000002.tar/000000006"
    assert len(one) == 2


@pytest.mark.parametrize("which", ["", "codes-000001.tar", "codes-{000000..000002}.tar"])
def test_F13_decode_reads_shards(pictures, codes, pipe, tmp_path, capsys, which):
    assert main(["decode", str(GOLDEN / CASE), str(codes / which), "--dtype", "fp32", "--out-dir", str(tmp_path)]) == 0
    expected = of_pictures(pictures)
    names = list(expected)[3:5] if which == "codes-000001.tar" else list(expected)
    assert sorted(file.stem for file in tmp_path.glob("*.png")) == [name[-5:-4] for name in names]
    for name in names:
        picture = np.asarray(Image.open(tmp_path / f"{name[-5:-4]}.png"))
        assert np.array_equal(picture, np.asarray(pipe.decode(expected[name])[0]))


def test_F13_given_top_reads_shards(codes, pipe, tmp_path, capsys):
    arguments = ["--given-top", str(codes), "--classes", "1", "--save-codes", str(tmp_path / "drawn.safetensors")]
    assert main(["sample", str(GOLDEN / CASE), *arguments, "--dtype", "fp32", "--out", str(tmp_path / "a.png")]) == 0
    drawn, given = read_codes(tmp_path / "drawn.safetensors", pipe.config.vae), read_codes(codes, pipe.config.vae)
    assert torch.equal(drawn.levels[0], given.levels[0])


@pytest.mark.parametrize(
    "command",
    [["encode", "CHECKPOINT", "CODES", "--shards", "out"], ["train", "stage1", "--data", "CODES", "--steps", "1"]],
)
def test_F13_commands_for_pictures_say_that_these_are_codes(codes, tmp_path, monkeypatch, capsys, command):
    pytest.importorskip("accelerate", reason="training needs the train extra")
    monkeypatch.chdir(tmp_path)
    places = {"CHECKPOINT": str(GOLDEN / CASE), "CODES": str(codes)}
    extra = ["--out", "run"] if command[0] == "train" else []
    assert main([places.get(word, word) for word in command] + extra) == 2
    assert "codes-000000.tar: expected pictures; got codes, which decode, sample and train stage2" in " ".join(
        capsys.readouterr().err.split()
    )


def test_F13_codes_of_another_vae_are_refused(codes):
    other = golden_pipeline("class_bidirectional").vae
    with pytest.raises(ConfigError, match=r"codes: expected codes of this HQ-VAE, \w{16}; got another one's, \w{16}$"):
        read_codes(codes, other.config).check_vae(other)
    with pytest.raises(ConfigError, match="expected codes of this HQ-VAE"):
        codes_as_data(open_source(codes, codes=True), other, soft_labels=False, mirrored=False)


def rewritten(codes, folder, change):
    """The shards with each member's bytes as ``change(name, bytes)`` gives them; None leaves one out."""
    folder.mkdir()
    for file in sorted(codes.glob("*.tar")):
        with tarfile.open(file) as tar, tarfile.open(folder / file.name, "w") as out:
            for member in tar:
                data = change(member.name, tar.extractfile(member).read())
                if data is not None:
                    member.size = len(data)
                    out.addfile(member, io.BytesIO(data))
    return folder


def array_bytes(array):
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


@pytest.mark.parametrize(
    "member, data, message",
    [
        (
            "000000004.level_1.npy",
            array_bytes(np.full((8, 8), 64, np.uint16)),
            "4.level_1.npy: expected codes from 0 to 63",
        ),
        ("000000004.level_0.npy", array_bytes(np.zeros((8, 8), np.uint16)), r"4.level_0.npy: expected \[B, 4, 4\]"),
        ("000000004.level_0.npy", array_bytes(np.zeros((4, 4))), "4.level_0.npy: expected integers"),
        ("000000004.level_0.npy", b"garbage", "4.level_0.npy: expected an array of codes"),
        ("000000004.level_1.npy", None, "codes-000001.tar: expected levels 0, 1, ... and a .json|one number of levels"),
        ("000000004.json", b"[]", r"000000004.json: expected a mapping; got list"),
    ],
)
def test_F13_damaged_shards_are_named(codes, pipe, tmp_path, member, data, message):
    folder = rewritten(codes, tmp_path / "codes", lambda name, own: data if name == member else own)
    with pytest.raises(ValueError, match=message):
        read_codes(folder, pipe.config.vae)


def test_F13_a_shard_that_is_cut_off_is_named(codes, pipe, tmp_path):
    data = (codes / "codes-000001.tar").read_bytes()
    (tmp_path / "codes-000001.tar").write_bytes(data[: len(data) // 2 // 512 * 512])
    with pytest.raises(ValueError, match=r"codes-000001\.tar: not an uncompressed tar, or cut off"):
        read_codes(tmp_path / "codes-000001.tar", pipe.config.vae)


# ----------------------------------------------------------------------------------------------------------- training


def test_F13_codes_are_read_in_the_pictures_place(pictures, codes, pipe):
    expected = of_pictures(pictures)
    data = select(open_source(codes, codes=True), {"class_name": ["dark"]})
    stored = codes_as_data(data, pipe.vae, soft_labels=False, mirrored=False)
    dataset = PictureDataset(data, 64, condition="class", stored=stored)
    assert [sample.label for sample in map(dataset.__getitem__, range(4))] == [1] * 4
    for index in range(4):
        assert torch.equal(dataset[index].image, join_codes(expected[data.fields(index)["key"]])[0])


def test_F13_codes_are_a_cache_of_their_pictures(pictures, codes, pipe):
    source, expected = open_source(pictures), of_pictures(pictures)
    cache = codes_as_cache(codes, source, pipe.vae, soft_labels=False, mirrored=False)
    assert cache.broken == 1
    dataset = PictureDataset(source, 64, condition="class", stored=cache)
    for index in range(8):
        sample = dataset[index]
        assert sample.key == source.key(index + (index == BROKEN))
        assert sample.broken == ((source.key(BROKEN),) if index == BROKEN else ())
        assert torch.equal(sample.image, join_codes(expected[sample.key])[0])
    bright = select(source, {"class_name": ["dark"]})
    part = codes_as_cache(codes, bright, pipe.vae, soft_labels=False, mirrored=False)
    assert torch.equal(part.read(0, False), join_codes(expected[source.key(4)])[0])


def test_F13_a_code_cache_with_a_foreign_code_is_named(pictures, pipe, tmp_path):
    pytest.importorskip("accelerate", reason="training needs the train extra")
    from hqtvae_fast.train.codes.build import build_code_cache

    source, config, file = open_source(pictures), pipe.config.vae, tmp_path / "cache.safetensors"
    made = {"data": source.fingerprint(), "vae": vae_hash(pipe.vae), "config": config, "pictures": len(source)}
    spec = CacheSpec(**made, content="codes", mirrored=False)
    build_code_cache(file, spec, source, pipe.vae)
    data = bytearray(file.read_bytes())
    first = 8 + int.from_bytes(data[:8], "little") + spec.picture_bytes + 2 * 16  # of picture 1's second level
    data[first : first + 2] = (64).to_bytes(2, "little")
    file.write_bytes(data)
    cache = CodeCache(file, spec)
    assert cache.read(0, False).shape == (80,)
    with pytest.raises(ValueError, match=r"picture 1, level_1: expected codes from 0 to 63; got \d+ to 64"):
        cache.read(1, False)


def test_F13_a_cache_of_other_pictures_is_refused(pictures, codes, pipe, tmp_path):
    wishes = {"soft_labels": False, "mirrored": False}
    Image.new("RGB", (64, 64)).save(tmp_path / "other.png")
    with pytest.raises(ConfigError, match=r"expected codes of these pictures, \w{16}; got those of other pictures"):
        codes_as_cache(codes, open_source(tmp_path), pipe.vae, **wishes)
    part = rewritten(codes, tmp_path / "codes", lambda name, own: own)
    (part / "codes.json").write_bytes((codes / "codes.json").read_bytes())
    (part / "codes-000001.tar").unlink()
    with pytest.raises(ConfigError, match=r"expected all shards of codes; 1 are missing, codes-000001\.tar the first"):
        codes_as_cache(part, open_source(pictures), pipe.vae, **wishes)
    with pytest.warns(UserWarning, match=r"1 shards are not there \(yet\): codes-000001\.tar"):
        codes_as_data(open_source(part, codes=True), pipe.vae, **wishes)
    with pytest.raises(
        ConfigError, match="code_cache: expected a file, or a folder of shards of codes; got pictures in"
    ):
        codes_as_cache(pictures, open_source(pictures), pipe.vae, **wishes)


@pytest.mark.parametrize(
    "wish, field", [("soft_labels", "soft_labels: expected 0"), ("mirrored", "flip: expected false")]
)
def test_F13_what_codes_cannot_give_is_refused(codes, pipe, wish, field):
    wishes = {"soft_labels": False, "mirrored": False, wish: True}
    with pytest.raises(ConfigError, match=f"^{field} with codes as data"):
        codes_as_data(open_source(codes, codes=True), pipe.vae, **wishes)


def test_F13_stage_2_trains_on_codes_as_on_their_pictures(pictures, codes, tmp_path, capfd):
    """The same losses from shards as data and as a code cache."""
    pytest.importorskip("accelerate", reason="training needs the train extra")
    from hqtvae_fast.train.config import Stage2Run, read_run
    from hqtvae_fast.train.run import train_stage2

    blocks = {"num_layers": 1, "num_heads": 2}
    common = {"vae": str(GOLDEN / CASE), "batch_size": 2, "workers": 0, "log_every": 1, "picture_every": 0, "steps": 3}
    common |= {"soft_labels": 0, "model": {"dim": 32, "num_classes": 2, "body": blocks, "head": blocks}}

    def losses(name, **data):
        train_stage2(read_run(Stage2Run, None, {**common, **data, "out": str(tmp_path / name)}))
        lines = (tmp_path / name / "losses.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    whole = {"data": str(pictures), "select": {"class_name": ["dark"]}}
    of_data = losses("data", data=str(codes), select={"class_name": ["dark"]})
    assert of_data == losses("cache", **whole, code_cache=str(codes))
    assert of_data == losses("file", **whole, code_cache=str(tmp_path / "cache.safetensors"))
    assert len(set(of_data)) == 3
    assert checkpoints.load(tmp_path / "data" / "model").transformer is not None


def test_F9_stage_2_takes_no_vae_with_nan(pictures, tmp_path):
    """Whose every code would be 0."""
    pytest.importorskip("accelerate", reason="training needs the train extra")
    from hqtvae_fast.train.config import Stage2Run, read_run
    from hqtvae_fast.train.run import train_stage2

    broken = checkpoints.load(GOLDEN / CASE)
    with torch.no_grad():
        broken.vae.quant_conv.bias[0] = float("nan")
    checkpoints.save(broken, tmp_path / "broken")
    where = {"vae": str(tmp_path / "broken"), "data": str(pictures), "out": str(tmp_path / "run")}
    blocks = {"num_layers": 1, "num_heads": 2}
    model = {"dim": 32, "num_classes": 2, "body": blocks, "head": blocks}
    with pytest.raises(ValueError, match="expected finite values, found NaN"):
        train_stage2(read_run(Stage2Run, None, {**where, "batch_size": 2, "steps": 1, "workers": 0, "model": model}))


def test_F13_the_released_function_takes_labels_of_any_width(pipe):
    def drawn(label):
        torch.manual_seed(0)
        return sampling_ihqgpt(pipe.transformer, 2, label, is_tqdm=False, max_seq_len=16)

    for label in (np.uint8(3), torch.tensor(3, dtype=torch.int16), [3]):
        assert all(map(torch.equal, drawn(label), drawn(3)))
    with pytest.raises(ValueError, match=r"^cond: expected a class label; got 2\.7"):
        drawn(2.7)
