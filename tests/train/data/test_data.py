"""Pictures for training: every kind of source, the order, the split over processes, broken files, captions."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import signal
import tarfile
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_sets import picture, write_folder, write_tar

from hqtvae_fast.pictures.images import to_tensor
from hqtvae_fast.train.data import (
    EMOJI,
    BrokenCount,
    CaptionTemplate,
    Draw,
    PictureDataset,
    PictureStream,
    all_captions,
    caption_template,
    make_loader,
    open_source,
)
from hqtvae_fast.train.data import dataset as dataset_module
from hqtvae_fast.train.data.dataset import Chance, chance

BROKEN = b"\x89PNG not a picture"
ANCHOR = {"name": "anchor", "keywords": ["ship", "tool"], "style": "noto", "group": "Travel", "subgroup": "transport"}


@pytest.fixture
def flat(tmp_path):
    """A folder of ten pictures, of which 3, 4 and 9 are broken."""
    return write_folder(tmp_path / "flat", {f"{i}.png": BROKEN if i in (3, 4, 9) else picture(i) for i in range(10)})


# ------------------------------------------------------------------------------------------------------------ sources


def emoji_members(count: int, start: int = 0) -> dict[str, bytes]:
    members = {}
    for i in range(start, start + count):
        style = ("noto", "fluent", "twemoji")[i % 3]
        fields = {**ANCHOR, "name": f"thing {i}", "style": style}
        members |= {f"{style}-{i}.webp": picture(i), f"{style}-{i}.json": json.dumps(fields).encode()}
    return members


def test_shards(tmp_path):
    write_tar(tmp_path / "a-00.tar", emoji_members(3))
    write_tar(tmp_path / "a-01.tar", emoji_members(2, start=3))
    for paths in (tmp_path, str(tmp_path / "a-*.tar"), str(tmp_path / "a-{00..01}.tar"),
                  [tmp_path / "a-00.tar", tmp_path / "a-01.tar"]):  # fmt: skip
        source = open_source(paths)
        assert len(source) == 5
        assert [source.picture(i) for i in range(5)] == [picture(i) for i in range(5)]
        assert source.key(3) == "a-01.tar/noto-3"
        assert source.fields(4)["name"] == "thing 4"
    assert len(open_source(tmp_path / "a-01.tar")) == 2
    assert source.fingerprint() == open_source(tmp_path).fingerprint()
    assert source.fingerprint() != open_source(tmp_path / "a-01.tar").fingerprint()
    assert pickle.loads(pickle.dumps(source)).picture(1) == picture(1)


def test_members_beside_the_picture(tmp_path):
    members = {
        "in/x.txt": b"a red vase\n", "in/x.JPG": picture(0), "in/x.cls": b"7\n", "in/x.seg.png": b"?",
        "lonely.json": b"{}", "y.png": picture(1),
    }  # fmt: skip
    source = open_source(write_tar(tmp_path / "s.tar", members))
    assert [source.key(i) for i in range(len(source))] == ["s.tar/in/x", "s.tar/y"]
    assert source.fields(0) == {"caption": "a red vase", "label": 7}
    assert source.fields(1) == {}
    dataset = PictureDataset(source, 4, condition="class")
    assert dataset[0].label == 7
    assert dataset[1].broken == ("s.tar/y",)  # it has no label


def test_class_folders(tmp_path):
    write_folder(tmp_path, {"dog/2.png": picture(2), "cat/deep/1.JPEG": picture(1), "cat/0.png": picture(0)})
    write_folder(tmp_path, {"cat/.hidden.png": b"", "cat/notes.txt": b"", ".git/x.png": b""})
    source = open_source(tmp_path)
    assert [source.key(i) for i in range(len(source))] == ["cat/0.png", "cat/deep/1.JPEG", "dog/2.png"]
    assert [source.fields(i)["label"] for i in range(3)] == [0, 0, 1]
    part = open_source(tmp_path, class_names=["ant", "cat", "dog"])
    assert part.fields(2) == {"label": 2, "class_name": "dog"}
    assert part.fingerprint() != source.fingerprint()
    with pytest.raises(ValueError, match="named as in class_names; got dog"):
        open_source(tmp_path, class_names=["cat"])
    sample = PictureDataset(source, 4, condition="text", caption=CaptionTemplate("a photo of a {class_name}"))[2]
    assert sample.caption == "a photo of a dog"
    (tmp_path / "eel").mkdir()
    with pytest.raises(ValueError, match="pictures of class 'eel'; found none"):
        open_source(tmp_path)


CAPTIONS_FILES = {
    "captions.json": '{"a.png": "one, \\"two\\"", "sub/b.png": ["three", "four"]}',
    "captions.jsonl": '{"file": "a.png", "caption": "one, \\"two\\""}\n\n'
    '{"file_name": "sub/b.png", "text": "three"}\n{"file": "sub/b.png", "caption": "four"}\n',
    "captions.tsv": 'file\tcaption\na.png\tone, "two"\nsub/b.png\tthree\nsub/b.png\tfour\n',
    "captions.csv": 'a.png,"one, ""two"""\r\nsub/b.png,three\r\nsub/b.png,four\r\n',
}


@pytest.mark.parametrize("name", CAPTIONS_FILES)
def test_captions_files(name, tmp_path):
    write_folder(tmp_path, {"a.png": picture(0), "sub/b.png": picture(1), "uncaptioned.png": picture(2)})
    (tmp_path / name).write_text(CAPTIONS_FILES[name], newline="")
    for path in (tmp_path, tmp_path / name):
        source = open_source(path)
        assert [source.key(i) for i in range(len(source))] == ["a.png", "sub/b.png"]
        assert [source.fields(i)["caption"] for i in range(2)] == ['one, "two"', ["three", "four"]]
    dataset = PictureDataset(source, 4, condition="text")
    assert {dataset[Draw(epoch, 1)].caption for epoch in range(20)} == {"three", "four"}
    assert list(all_captions(source)) == ['one, "two"', "three", "four"]


def test_flat_folder(flat):
    source = open_source(flat)
    assert [source.key(i) for i in range(len(source))] == [f"{i}.png" for i in range(10)]
    assert source.fields(0) == {}


def refused(paths, *says, **options):
    with pytest.raises(ValueError) as caught:
        open_source(paths, **options)
    for words in says:
        assert words in str(caught.value)


def test_what_is_not_a_source(tmp_path):
    refused(tmp_path, "expected one or more .tar shards", "none of these")
    refused([], "no path")
    refused(tmp_path / "gone.tar", "gone.tar: no such file")
    refused(str(tmp_path / "s-{0..1}.tar"), "s-0.tar: no such file")
    refused(str(tmp_path / "s-{a..b}.tar"), "expected numbers")
    refused(str(tmp_path / "s-*.tar"), "no such file")
    (tmp_path / "x.zip").write_bytes(b"")
    refused(tmp_path / "x.zip", "expected one or more .tar shards", "x.zip")
    write_folder(tmp_path, {"a.png": picture(0), "cat/b.png": picture(1)})
    refused(tmp_path, "found pictures and class folders")
    refused(tmp_path / "cat", "class_names: expected a folder of class folders", class_names=["cat"])
    for name in ("captions.json", "captions.tsv"):
        (tmp_path / name).write_text("{}")
    refused(tmp_path, "expected one captions file; got captions.json, captions.tsv")


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("captions.json", '{"gone.png": "x"}', "there is no gone.png"),
        ("captions.json", "{", "expected a .json mapping"),
        ("captions.json", "3", "got int"),
        ("captions.json", '{"a.png": " "}', "expected a file name and a caption; got 'a.png' and ' '"),
        ("captions.json", "{}", "no captions"),
        ("captions.jsonl", '{"file": "a.png"}', "field named caption or text; got file"),
        ("captions.jsonl", "[1]", "expected a mapping"),
        ("captions.tsv", "a.png one", "line 1: expected a file name and a caption; got 1 columns"),
    ],
)
def test_bad_captions_files(name, text, says, tmp_path):
    write_folder(tmp_path, {"a.png": picture(0), name: text.encode()})
    refused(tmp_path, says, name)
    refused(tmp_path / "gone.csv", "gone.csv: no such file")


def test_bad_tars(tmp_path):
    tar = write_tar(tmp_path / "s.tar", emoji_members(4))
    whole = tar.read_bytes()
    with tarfile.open(tar) as listing:
        third = listing.getmembers()[2]
    cuts = {"in a header": third.offset + 100, "between members": third.offset, "in a member": third.offset_data + 9}
    for cut in cuts.values():
        tar.write_bytes(whole[:cut])
        refused(tar, "s.tar: not an uncompressed tar, or cut off")
    tar.write_bytes(whole[: third.offset] + b"\xff" * 512 + whole[third.offset + 512 :])
    refused(tar, "or cut off")
    tar.write_bytes(b"")
    refused(tar, "or cut off")
    write_tar(tar, {"a.png": b"", "a.jpg": b""})
    refused(tar, "expected one picture named 'a'; got two")
    write_tar(tar, {"a.json": b"{}"})
    refused(tar, "found none")
    write_tar(tar, {"a.png": picture(0)})
    refused([tar, tar], "each shard once")


def test_a_shard_that_shrinks_later_is_broken_not_fatal(tmp_path):
    tar = write_tar(tmp_path / "s.tar", {"a.png": picture(0), "b.png": picture(1)})
    dataset = PictureDataset(open_source(tar), 4)
    tar.write_bytes(tar.read_bytes()[:1600])
    assert dataset[1].key == "s.tar/a"
    assert dataset[1].broken == ("s.tar/b",)


# -------------------------------------------------------------------------------------------------------------- order


def pictures_of(stream: PictureStream, batches: int) -> list[Draw]:
    return [draw for batch in islice(stream, batches) for draw in batch]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 2**40))
def test_every_picture_counts_once_an_epoch(length, batch_size, seed):
    """However few pictures there are, and however the batches lie over the seams of epochs."""
    stream = PictureStream(length, batch_size, seed=seed)
    draws = pictures_of(stream, -(-3 * length // batch_size))[: 3 * length]
    for epoch in range(3):
        part = draws[epoch * length : (epoch + 1) * length]
        assert {draw.epoch for draw in part} == {epoch}
        assert sorted(draw.picture for draw in part) == list(range(length))
    assert stream.epochs(len(draws)) == 3.0
    assert stream.batches_per_epoch == length / batch_size


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.sampled_from([1, 2, 3, 4]), st.integers(0, 100))
def test_ranks_share_the_same_global_batches(length, share, world, seen):
    one = PictureStream(length, share * world)
    ranks = [PictureStream(length, share * world, rank=rank, world=world) for rank in range(world)]
    for stream in (one, *ranks):
        stream.seek(seen)
    for whole, *parts in islice(zip(one, *ranks, strict=True), 4):
        assert len(whole) == share * world
        assert all(part == whole[rank::world] for rank, part in enumerate(parts))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 60), st.integers(1, 20))
def test_any_position_can_be_jumped_to_with_another_batch_size(length, batch_size, batches, other):
    everything = pictures_of(PictureStream(length, 1, seed=7), batches * batch_size + 3 * other)
    resumed = PictureStream(length, other, seed=7)
    resumed.seek(batches * batch_size)
    assert pictures_of(resumed, 3) == everything[batches * batch_size :]


def test_orders_differ_by_epoch_and_seed_and_stay_the_same_for_ever():
    def order(seed, epoch):
        stream = PictureStream(8, 8, seed=seed)
        stream.seek(8 * epoch)
        return [draw.picture for draw in next(iter(stream))]

    assert order(0, 0) != order(0, 1) != order(1, 0)
    # A run must go on in its order, and with its crops, under later versions of NumPy too.
    assert order(3, 1) == [5, 0, 1, 2, 6, 3, 4, 7]
    frozen = (0.7668413705802817, 0.8206877075052916, 0.3456876311594065, 0.400467876937709)
    assert chance(3, Draw(1, 5))[:4] == pytest.approx(frozen, abs=1e-15)


def test_stream_arguments():
    for arguments, says in [
        ({"rank": 2, "world": 2}, r"rank: expected one in \[0, 2\); got 2"),
        ({"batch_size": 3, "world": 2}, "positive multiple of the 2 processes; got 3"),
        ({"length": 0}, "expected at least one picture; got 0"),
        ({"seed": -1}, "seed"),
    ]:
        with pytest.raises(ValueError, match=says):
            PictureStream(**{"length": 8, "batch_size": 4, **arguments})
    with pytest.raises(ValueError, match="seen: expected 0 or more; got -1"):
        PictureStream(8, 4).seek(-1)


# ------------------------------------------------------------------------------------------------------------ samples


@pytest.mark.parametrize("size", [(12, 8), (8, 12), (8, 8), (5, 5), (1, 40)])
def test_transforms(size, tmp_path):
    source = open_source(write_folder(tmp_path, {"a.png": picture(0, size)}))
    image = Image.open(io.BytesIO(picture(0, size)))
    plain = PictureDataset(source, 8, training=False, flip=True)[0].image
    assert plain.shape == (3, 8, 8)
    assert plain.dtype == torch.float32
    assert plain.is_contiguous()
    assert -1 <= plain.min() < plain.max() <= 1
    assert torch.equal(plain, to_tensor([image], 8)[0])
    dataset = PictureDataset(source, 8, flip=True, seed=1)
    seen = [dataset[Draw(epoch, 0)].image for epoch in range(12)]
    again = [PictureDataset(source, 8, flip=True, seed=1)[Draw(epoch, 0)].image for epoch in range(12)]
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    if size == (8, 8):
        flips = [chance(1, Draw(epoch, 0)).flip < 0.5 for epoch in range(12)]
        assert 0 < sum(flips) < 12
        expected = [plain.flip(2) if flipped else plain for flipped in flips]
        assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    if size == (12, 8):
        assert len({tensor.numpy().tobytes() for tensor in seen}) == 12  # other crops each time


def test_chances_are_spread_evenly():
    draws = np.array([chance(0, Draw(0, index)) for index in range(2000)])
    assert ((draws >= 0) & (draws < 1)).all()
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(6), atol=0.08)


def ramps(size):
    """A picture whose red tells the place along x, and whose green that along y, from 0 to 1."""
    x, y = np.meshgrid(*[(np.arange(length) + 0.5) / length * 255 for length in size])
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).round().astype(np.uint8))


def window(image, size):
    """Of a square cut out of ``ramps(size)``: left, top, width and height, in pixels of the whole picture."""
    pixels = image.numpy() / 2 + 0.5
    x, y = pixels[0].mean(axis=0) * size[0], pixels[1].mean(axis=1) * size[1]
    step_x, step_y = (x[-1] - x[0]) / (len(x) - 1), (y[-1] - y[0]) / (len(y) - 1)
    return x[0] - step_x / 2, y[0] - step_y / 2, step_x * len(x), step_y * len(y)


@pytest.mark.parametrize("size", [(120, 80), (80, 120), (80, 80)])
def test_crops_of_a_share_of_the_area(size, tmp_path):
    ramps(size).save(tmp_path / "a.png")
    dataset = PictureDataset(open_source(tmp_path), 16, crops=(0.25, 1.0))
    found = np.array([window(dataset[Draw(epoch, 0)].image, size) for epoch in range(300)])
    left, top, width, height = found.T
    np.testing.assert_allclose(width, height, rtol=0.06, atol=2)  # squares still
    areas = width * height / 80**2
    assert 0.2 < areas.min() < 0.32
    assert 0.9 < areas.max() < 1.08
    assert abs(areas.mean() - 0.625) < 0.05
    for place, side, length in ((left, width, size[0]), (top, height, size[1])):
        assert (place > -2).all()
        assert (place + side < length + 2).all()
        free = length - side > 10
        shares = (place / (length - side))[free]
        assert (shares.min() < 0.1) & (shares.max() > 0.9) & (abs(shares.mean() - 0.5) < 0.06)


def test_crops_of_the_whole_area_are_as_without(tmp_path):
    for index, size in enumerate(((12, 8), (8, 12), (1, 40), (8, 8))):
        (tmp_path / f"{index}.png").write_bytes(picture(index, size))
    source = open_source(tmp_path)
    draws = [Draw(epoch, index) for epoch in range(4) for index in range(4)]
    plain, cropped = PictureDataset(source, 8), PictureDataset(source, 8, crops=(1.0, 1.0))
    assert all(torch.equal(plain[draw].image, cropped[draw].image) for draw in draws)
    small = PictureDataset(source, 8, crops=(0.05, 0.1))
    assert all(torch.isfinite(small[draw].image).all() for draw in draws)
    assert not any(torch.equal(plain[draw].image, small[draw].image) for draw in draws)
    for options in ({"training": False}, {"stored": Codes()}):  # evaluation's squares; codes are of those too
        still = PictureDataset(source, 8, crops=(0.05, 0.1), **options)
        assert torch.equal(still[Draw(0, 0)].image, still[Draw(1, 0)].image)


class Codes:
    """Stored codes: the picture's number."""

    content = "codes"

    def read(self, index, mirrored):
        return torch.tensor([index, mirrored])


@pytest.mark.parametrize("crops", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.5), (float("nan"), 1.0)])
def test_crops_that_are_none(crops, flat):
    with pytest.raises(ValueError, match=r"crops: expected two shares of the area, 0 < low <= high <= 1; got \("):
        PictureDataset(open_source(flat), 8, crops=crops)


MODES = {
    "1": ("png", 1), "L": ("png", 128), "LA": ("png", (128, 255)), "P": ("png", 5), "P.gif": ("gif", 5),
    "RGB": ("jpg", (128, 128, 128)), "RGBA": ("webp", (128, 128, 128, 255)), "I;16": ("png", 32896),
    "CMYK": ("jpg", (127, 127, 127, 0)), "PA": ("png", 5),
}  # fmt: skip


def test_every_mode_of_a_picture_becomes_rgb(tmp_path):
    for name, (suffix, value) in MODES.items():
        image = Image.new(name.split(".")[0], (8, 8), value)
        if image.mode in ("P", "PA"):
            image.putpalette([128] * 768)
        if image.mode == "PA":
            image = image.convert("P")
            image.info["transparency"] = 255
        image.save(tmp_path / f"{name}.{suffix}", lossless=True)
    source = open_source(tmp_path)
    dataset, pictures = PictureDataset(source, 4), {}
    for index in range(len(source)):
        sample = dataset[index]
        assert sample.broken == ()
        assert sample.image.shape == (3, 4, 4)
        pictures[sample.key.rsplit(".", 1)[0]] = sample.image
    assert pictures.keys() == MODES.keys()
    assert (pictures.pop("1") == 1).all()
    for name, image in pictures.items():
        assert (image - 1 / 255).abs().max() < 3 / 127.5, name


def test_transparent_colours_become_white(tmp_path):
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "grey.png")
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette([0] * 768)
    palette.save(tmp_path / "palette.png", transparency=3)
    palette.save(tmp_path / "palette.gif", transparency=3)
    Image.new("L", (4, 4), 7).save(tmp_path / "colour.png", transparency=7)
    Image.new("RGB", (4, 4), (7, 8, 9)).save(tmp_path / "rgb.png", transparency=(7, 8, 9))
    dataset = PictureDataset(open_source(tmp_path), 4)
    assert len(dataset) == 5
    assert all((dataset[index].image == 1).all() for index in range(5))


def test_a_picture_in_the_wrong_depth(tmp_path):
    write_folder(tmp_path, {"cat/a.png": picture(0), "dog/deep/b.png": picture(1)})
    assert len(open_source(tmp_path)) == 2  # below a class folder any depth will do
    write_folder(tmp_path, {"c.png": picture(2)})
    refused(tmp_path, "found pictures and class folders")


def test_transparency_and_orientation(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upside = Image.new("RGB", (8, 8))
    upside.paste((255, 255, 255), (0, 4, 8, 8))
    upside.save(tmp_path / "b.jpg", exif=exif)
    dataset = PictureDataset(open_source(tmp_path), 4, training=False)
    assert (dataset[0].image == 1).all()
    assert dataset[1].image[:, 0].min() > 0.9


def test_broken_pictures_are_replaced_and_named(flat):
    dataset = PictureDataset(open_source(flat), 8)
    assert dataset[2].broken == ()
    assert (dataset[3].key, dataset[3].broken) == ("5.png", ("3.png", "4.png"))
    assert (dataset[9].key, dataset[9].broken) == ("0.png", ("9.png",))  # the one after the last is the first
    same_crop = PictureDataset(open_source(flat), 8)
    assert torch.equal(dataset[3].image, same_crop[3].image)


def test_nothing_readable(tmp_path):
    dataset = PictureDataset(open_source(write_folder(tmp_path, {"a.png": BROKEN, "b.png": b""})), 8)
    with pytest.raises(ValueError, match=r"among 2 from b.png on; the last: a.png: not a readable picture"):
        dataset[1]


def test_dataset_arguments(flat, tmp_path):
    source = open_source(flat)
    with pytest.raises(ValueError, match=r"condition='class': 0.png.*expected a field 'label'.*no fields"):
        PictureDataset(source, 8, condition="class")
    with pytest.raises(ValueError, match="expected fields caption; got none"):
        PictureDataset(source, 8, condition="text")
    with pytest.raises(ValueError, match="expected one of none, class, text; got 'label'"):
        PictureDataset(source, 8, condition="label")
    with pytest.raises(ValueError, match="resolution"):
        PictureDataset(source, 0)
    with pytest.raises(IndexError):
        PictureDataset(source, 8)[10]
    tar = write_tar(tmp_path / "s.tar", {"a.png": picture(0), "a.cls": b"3"})
    with pytest.raises(ValueError, match=r"s.tar/a: expected a label of 0 or more and below 3; got 3"):
        PictureDataset(open_source(tar), 8, condition="class", num_classes=3)


def test_pictures_with_the_condition_may_come_last(tmp_path):
    members = emoji_members(30)
    members = {
        name: data for name, data in members.items() if name.endswith(".webp") or int(name.split("-")[1][:-5]) > 12
    }
    dataset = PictureDataset(open_source(write_tar(tmp_path / "s.tar", members)), 8, condition="text", caption=EMOJI)
    assert dataset[0].key.startswith("s.tar/fluent-13")
    assert len(dataset[0].broken) == 13


# ----------------------------------------------------------------------------------------------------------- captions


def test_emoji_captions():
    assert EMOJI.caption(ANCHOR) == "anchor, shaded"
    assert EMOJI.caption({**ANCHOR, "style": "fluent"}) == "anchor, 3d"
    assert EMOJI.caption({**ANCHOR, "style": "twemoji"}) == "anchor, flat"
    assert EMOJI.caption({**ANCHOR, "style": "new"}) == "anchor, new"
    assert EMOJI.caption(ANCHOR, variant=0.05) == "anchor"
    assert EMOJI.caption(ANCHOR, variant=0.12, choice=0.9) == "tool, shaded"
    assert EMOJI.caption(ANCHOR, variant=0.16) == "anchor, shaded"
    assert EMOJI.caption({**ANCHOR, "keywords": []}, variant=0.12) == "anchor, shaded"
    assert list(EMOJI.every(ANCHOR)) == ["anchor, shaded", "anchor", "ship, shaded", "tool, shaded"]


def test_emoji_shard(tmp_path):
    source = open_source(write_tar(tmp_path / "s.tar", emoji_members(9)))
    plain = PictureDataset(source, 8, condition="text", caption=EMOJI, training=False)
    assert [plain[i].caption for i in range(3)] == ["thing 0, shaded", "thing 1, 3d", "thing 2, flat"]
    varied = PictureDataset(source, 8, condition="text", caption=EMOJI)
    seen = [varied[Draw(epoch, index)].caption for epoch in range(20) for index in range(9)]
    assert 0.7 < np.mean([caption.startswith("thing") and "," in caption for caption in seen]) < 0.95
    assert set(seen) <= set(all_captions(source, EMOJI))
    assert seen == [varied[Draw(epoch, index)].caption for epoch in range(20) for index in range(9)]


def test_templates():
    assert caption_template("emoji") is EMOJI
    assert caption_template("{group}: {name}").caption(ANCHOR) == "Travel: anchor"
    assert caption_template("{keywords} and {keywords}").caption(ANCHOR) == "ship and ship"
    for bad, says in [("emojis", "expected one of plain, emoji"), ("{", "in braces"), ("{a.b}", "in braces")]:
        with pytest.raises(ValueError, match=says):
            caption_template(bad)
    with pytest.raises(ValueError, match="sum is at most 1"):
        CaptionTemplate("{a}", variants=(("{b}", 0.6), ("{c}", 0.5)))
    with pytest.raises(ValueError, match="expected fields colour; got name"):
        caption_template("{colour}").caption(ANCHOR)


def test_a_malformed_condition_is_skipped(tmp_path):
    members = emoji_members(3) | {"fluent-1.json": b"[1]"}
    source = open_source(write_tar(tmp_path / "s.tar", members))
    sample = PictureDataset(source, 8, condition="text", caption=EMOJI, training=False)[1]
    assert (sample.caption, sample.broken) == ("thing 2, flat", ("s.tar/fluent-1",))


# ------------------------------------------------------------------------------------------------------------ batches


def first_of(dataset, stream, batches, **options):
    return list(islice(make_loader(dataset, stream, **options), batches))


def same_batches(left, right):
    return len(left) == len(right) and all(
        a.keys == b.keys and torch.equal(a.images, b.images) for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(flat, workers):
    dataset = PictureDataset(open_source(flat), 8, flip=True, seed=5)
    stream = PictureStream(10, 4, seed=5)
    loader = make_loader(dataset, stream, workers=workers)
    before = torch.random.get_rng_state()
    whole = list(islice(loader, 5))
    assert torch.equal(torch.random.get_rng_state(), before)  # dropout, say, goes on as if there were no loader
    assert [len(batch) for batch in whole] == [4] * 5
    assert whole[0].images.shape == (4, 3, 8, 8)
    assert whole[0].labels is None
    assert whole[0].captions is None
    broken = BrokenCount()
    for batch in whole:
        assert not set(batch.keys) & {"3.png", "4.png", "9.png"}
        broken.add(batch.broken)
    assert broken.count == 8  # in each of two epochs 4.png twice: in its own place, and in 3.png's
    assert set(broken.first) == {"3.png", "4.png", "9.png"}
    stream.seek(8)  # what the workers have read ahead is forgotten
    assert same_batches(list(islice(loader, 3)), whole[2:])
    stream.seek(10)
    assert not same_batches(list(islice(loader, 5)), whole)


def test_workers_have_no_say(flat):
    dataset = PictureDataset(open_source(flat), 8, flip=True)
    torch.manual_seed(0)
    alone = first_of(dataset, PictureStream(10, 4), 3)
    torch.manual_seed(1)
    assert same_batches(first_of(dataset, PictureStream(10, 4), 3, workers=2), alone)


def test_workers_leave_ctrl_c_to_the_process_that_trains(flat):
    loader = make_loader(PictureDataset(open_source(flat), 8), PictureStream(10, 4), workers=2)
    batches = iter(loader)
    assert len(list(islice(batches, 2))) == 2  # one of each: both have begun
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    assert all(len(batch) == 4 for batch in islice(batches, 12))
    assert all(worker.is_alive() for worker in workers)


def test_two_processes_see_what_one_sees(flat):
    dataset = PictureDataset(open_source(flat), 8)
    one = first_of(dataset, PictureStream(10, 4), 3)
    two = [first_of(dataset, PictureStream(10, 4, rank=rank, world=2), 3) for rank in range(2)]
    for whole, first, second in zip(one, *two, strict=True):
        assert torch.equal(whole.images[0::2], first.images)
        assert torch.equal(whole.images[1::2], second.images)


def test_batches_carry_conditions(tmp_path):
    write_folder(tmp_path, {"dog/2.png": picture(2), "cat/0.png": picture(0), "cat/1.png": picture(1)})
    source = open_source(tmp_path)
    (batch,) = first_of(PictureDataset(source, 8, condition="class"), PictureStream(3, 3), 1)
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [int(key.startswith("dog")) for key in batch.keys]
    captions = PictureDataset(source, 8, condition="text", caption=CaptionTemplate("{class_name}"))
    (batch,) = first_of(captions, PictureStream(3, 3), 1)
    assert batch.captions == tuple(key.split("/")[0] for key in batch.keys)
    assert sorted(batch.to("cpu").keys) == ["cat/0.png", "cat/1.png", "dog/2.png"]
    with pytest.raises(ValueError, match="over the 3 pictures of the dataset; got 4"):
        make_loader(captions, PictureStream(4, 2))


def test_broken_count_says_a_few():
    broken = BrokenCount()
    assert str(broken) == "none broken"
    broken.add(["a"])
    assert str(broken) == "1 broken skipped: a"
    broken.add(list("abcdefg"))
    assert str(broken) == "8 broken skipped: a, b, c, d, e, ..."
    assert Chance().flip >= 0.5  # evaluation never mirrors


def test_a_cameras_picture_is_decoded_once_and_the_same_again(tmp_path, monkeypatch):
    """1200x900 pixels to a square of 16: made smaller, kept, and the same whether it was kept or not."""
    ramp = np.linspace(0, 255, 1200, dtype=np.float64)
    array = np.stack([np.broadcast_to(ramp, (900, 1200)), np.broadcast_to(ramp[:900, None], (900, 1200))], axis=-1)
    Image.fromarray(np.dstack([array, array[..., :1]]).astype(np.uint8)).save(tmp_path / "photo.png")
    read, opened = dataset_module.read_picture, []
    monkeypatch.setattr(dataset_module, "read_picture", lambda *given: opened.append(1) or read(*given))
    kept = PictureDataset(open_source(tmp_path), 16, crops=(0.5, 1.0), flip=True, seed=3)
    samples = [kept[Draw(epoch, 0)].image for epoch in range(5)]
    assert len(opened) == 1
    monkeypatch.setattr(dataset_module, "KEPT_BYTES", 0)
    again = PictureDataset(open_source(tmp_path), 16, crops=(0.5, 1.0), flip=True, seed=3)
    assert all(torch.equal(again[Draw(epoch, 0)].image, sample) for epoch, sample in enumerate(samples))
    assert len(opened) == 6
    monkeypatch.setattr(dataset_module, "ENOUGH", 1e9)  # as it is: the crop itself is hardly another
    exact = PictureDataset(open_source(tmp_path), 16, crops=(0.5, 1.0), flip=True, seed=3)
    assert all((exact[Draw(epoch, 0)].image - sample).abs().max() < 0.02 for epoch, sample in enumerate(samples))
