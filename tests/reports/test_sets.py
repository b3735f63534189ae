"""Sets of pictures: what belongs to one, what its captions and classes are, and what is said of the rest."""

from __future__ import annotations

import io
import json
import os
import tarfile
import warnings
from pathlib import Path

import pytest
from PIL import Image

from hqtvae_fast import checkpoint
from hqtvae_fast.cli.pictures import find_pictures
from hqtvae_fast.evaluate import open_pictures
from hqtvae_fast.pictures.files import PICTURE_SUFFIXES, walk
from hqtvae_fast.train.codes.shards import CodeShards
from hqtvae_fast.train.data import caption_template, class_names, open_source, select, survey
from hqtvae_fast.train.data.captions_file import read_captions
from hqtvae_fast.train.data.sources import Source

CHECKPOINT = Path(__file__).parents[1] / "golden" / "class_parallel"
pytestmark = pytest.mark.filterwarnings("ignore:.*left out")  # where it is tested, they are caught


def picture(kind: str = "PNG", shade: int = 0) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(data, kind)
    return data.getvalue()


def write(folder: Path, *names: str, data: bytes | None = None) -> Path:
    """Files of these names under a folder, pictures if nothing else is given."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture() if data is None else data)
    return folder


def write_tar(file: Path, *names: str, **contents: bytes) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, data in {**dict.fromkeys(names, picture()), **contents}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def keys(source: Source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def captions(file: Path, text: str) -> dict[str, list[str]]:
    file.write_text(text, encoding="utf-8")
    return read_captions(file)


def said(paths: Path | list[Path], opening=open_source) -> list[str]:
    """The warnings of opening a set twice in one place: each is said once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            opening(paths)
    return [str(warning.message) for warning in caught]


# ------------------------------------------------------------------------------------------------------------- formats


def test_F5_every_command_sees_the_same_formats(tmp_path: Path) -> None:
    kinds = ["png", "jpeg", "webp", "bmp", "tiff", "gif", "ppm", "tga"]
    for kind in kinds:
        write(tmp_path / "set", f"{kind}.{kind.upper()}", data=picture(kind))
    names = sorted(f"{kind}.{kind.upper()}" for kind in kinds)
    assert keys(open_source(tmp_path / "set")) == names
    assert [file.name for file in find_pictures([tmp_path / "set"])] == names
    batches = open_pictures(tmp_path / "set").batches(len(kinds))
    assert len(next(batches).images) == len(kinds)
    data = {f"{kind}.{kind}": picture(kind) for kind in sorted(kinds)}
    assert keys(open_source(write_tar(tmp_path / "s.tar", **data))) == [f"s.tar/{kind}" for kind in sorted(kinds)]
    assert {".bmp", ".tif", ".gif"} <= set(PICTURE_SUFFIXES)


def test_F5_what_is_left_out_is_counted_once(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.heic", "c.heic", "d.HEIC", "e.mp4", "README", ".d.png", ".DS_Store")
    found = [f"{tmp_path}: left out 6 files (3 .heic, 1 hidden, 1 without a suffix, 1 .mp4): not named as pictures"]
    assert said(tmp_path) == found
    assert said([tmp_path], find_pictures) == found
    (tmp_path / "quiet").mkdir()
    assert said(write(tmp_path / "quiet", "a.png", "b.png")) == []


def test_F5_what_is_left_out_of_shards_is_counted_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", "a.png", "a.npy", "b.heic")
    write_tar(tmp_path / "s-1.tar", "a.png", "a.seg.png", "c.txt", "__MACOSX/a.png", "._a.png", "./d.png")
    (found,) = said([tmp_path / "s-0.tar", tmp_path / "s-1.tar"])
    assert found.startswith(f"{tmp_path / 's-0.tar'} and 1 more: left out 6 files (")
    for kind in ("2 hidden", "1 .npy", "1 .heic", "1 .seg.png", "1 without a picture"):
        assert kind in found
    assert keys(open_source(tmp_path / "s-1.tar")) == ["s-1.tar/a", "s-1.tar/./d"]


def test_F5_one_process_of_many_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.png", "b.heic")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert said(tmp_path) == []


def test_F5_nothing_to_see_names_what_there_is(tmp_path: Path) -> None:
    write(tmp_path, "a.heic", "b.heic")
    for opening in (open_source, lambda path: find_pictures([path])):
        with pytest.raises(ValueError, match=r"but \.heic"):
            opening(tmp_path)


def test_F5_names_with_dots_in_tars_are_samples(tmp_path: Path) -> None:
    names = ["IMG.0003", "plain", "shot 2.0 final", "v1.2"]
    file = write_tar(tmp_path / "s.tar", *(f"{name}.png" for name in names), **{"v1.2.txt": b"a", "in/x.y.json": b"{}"})
    source = open_source(file)
    assert keys(source) == [f"s.tar/{name}" for name in names]
    assert source.fields(3) == {"caption": "a"}


@pytest.mark.parametrize("beside", ["a.png", "a.json"])
def test_F5_compound_suffixes_stay_members_of_their_sample(beside: str, tmp_path: Path) -> None:
    file = write_tar(tmp_path / "s.tar", "a.seg.png", beside, "b.png", "c.d.png", **{"a.json": b"{}"})
    wanted = ["s.tar/a", "s.tar/b", "s.tar/c.d"] if beside == "a.png" else ["s.tar/b", "s.tar/c.d"]
    assert keys(open_source(file)) == wanted


# --------------------------------------------------------------------------------------------------------------- links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Two classes, one by a link to a folder elsewhere; and links inside the set, in circles, to nothing."""
    write(tmp_path / "elsewhere", "x.png", "deep/y.png")
    root = write(tmp_path / "set", "a/0.png", "a/more/1.png")
    (root / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "a" / "again").symlink_to(root / "a" / "more", target_is_directory=True)
    (root / "a" / "round").symlink_to(root, target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(root, target_is_directory=True)
    (root / "a" / "self").symlink_to("self")
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    (root / "a" / "link.png").symlink_to("0.png")
    return root


def test_G7_links_are_followed_once_by_every_command(linked: Path) -> None:
    wanted = ["a/0.png", "a/gone.png", "a/link.png", "a/more/1.png", "b/deep/y.png", "b/x.png"]
    assert walk(linked).pictures == wanted
    assert keys(open_source(linked)) == wanted
    assert [file.relative_to(linked).as_posix() for file in find_pictures([linked])] == wanted
    assert open_source(linked).fields(4) == {"label": 1, "class_name": "b"}


def test_G7_a_class_that_links_to_another_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set", "a/0.png")
    (root / "b").symlink_to(root / "a", target_is_directory=True)
    with pytest.raises(ValueError, match=r"pictures of class 'b'; found none but those of a folder that it links to"):
        open_source(root)


def test_G8_what_macos_adds_and_hidden_files_are_no_part_of_a_set(tmp_path: Path) -> None:
    write(tmp_path / "set", "a/0.png", "b/1.png", "__MACOSX/a/._0.png", ".cache/2.png", "a/._0.png")
    assert keys(open_source(tmp_path / "set")) == ["a/0.png", "b/1.png"]
    assert [file.name for file in find_pictures([tmp_path / "set"])] == ["0.png", "1.png"]
    write_tar(tmp_path / "set.tar", "a.png")
    write(tmp_path, "._set.tar", data=b"AppleDouble")
    write(tmp_path / "shards", "._s.tar", data=b"AppleDouble")
    write_tar(tmp_path / "shards" / "s.tar", "a.png")
    assert keys(open_source(tmp_path / "shards")) == ["s.tar/a"]


# ------------------------------------------------------------------------------------------------------------ patterns


@pytest.mark.parametrize("name", ["run [1]", "a{0..1}", "x{p,q}", "[!a]*"])
def test_F16_folders_are_taken_as_they_are_written(name: str, tmp_path: Path) -> None:
    (folder := tmp_path / name).mkdir()
    for shard in range(2):
        write_tar(folder / f"s-{shard}.tar", "a.png")
    for pattern in ("s-*.tar", "s-{0..1}.tar", "s-[01].tar", "s-{0,1}.tar"):
        assert keys(open_source(folder / pattern)) == ["s-0.tar/a", "s-1.tar/a"], pattern
    with pytest.raises(ValueError, match=r"s-2\.tar: no such file"):
        open_source(folder / "s-{0..2}.tar")


def test_F16_patterns_stand_for_folders_too(tmp_path: Path) -> None:
    for part in ("p1", "p2"):
        (tmp_path / part).mkdir()
        write_tar(tmp_path / part / f"{part}.tar", "a.png")
    for pattern in ("p?/*.tar", "{p1/p1,p2/p2}.tar"):
        assert keys(open_source(tmp_path / pattern)) == ["p1.tar/a", "p2.tar/a"], pattern


# ------------------------------------------------------------------------------------------------------------ captions


@pytest.mark.parametrize(
    "text, line",
    [
        ('0.png,"a cat\n1.png,dog\n2.png,x\n', 1),
        ('0.png,a\n1.png,"a cat\n2.png,"dog"\n', 2),
        ('0.png,"cat" on a mat\n1.png,dog\n', 1),
        ('0.png,a\n1.png,"dog\n2.png,a cat "\n3.png,x\n', 2),
        ('0.png,a\n1.png,"dog\n2.PNG,a cat\n3.jpg,b"\n', 2),
    ],
)
def test_G8_an_unclosed_quote_swallows_no_row(text: str, line: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"captions\.csv: line {line}: a quote is not closed"):
        captions(tmp_path / "captions.csv", text)


def test_G8_quotes_that_are_closed_are_read(tmp_path: Path) -> None:
    text = '0.png,"a, ""big"" cat"\n1.png,"two\nlines, of text"\n2.png,a 5" plate\n\n  \n3.png,x\n'
    found = captions(tmp_path / "captions.csv", text)
    assert found == {
        "0.png": ['a, "big" cat'],
        "1.png": ["two\nlines, of text"],
        "2.png": ['a 5" plate'],
        "3.png": ["x"],
    }
    with pytest.raises(ValueError, match="line 3: expected a file name and a caption; got 1 columns"):
        captions(tmp_path / "captions.csv", '0.png,"two\nlines"\n1.png\n')


def test_G8_names_that_come_twice_lose_no_caption(tmp_path: Path) -> None:
    text = '{"0.png": "a", "1.png": "x", "0.png": ["b", "c"], "./0.png": "d"}'
    assert captions(tmp_path / "captions.json", text) == {"0.png": ["a", "b", "c", "d"], "1.png": ["x"]}


@pytest.mark.parametrize("value", ["[]", "[null]", '{"en": "cat"}', "7", '"\\ud83d"'])
def test_G8_what_is_no_caption_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"captions\.json: expected (a file name and a caption|text); got "):
        captions(tmp_path / "captions.json", f'{{"0.png": {value}, "1.png": "x"}}')


def test_G8_pictures_without_a_caption_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "0.png", "1.png", "in/2.jpg", "notes.txt")
    (tmp_path / "captions.json").write_text('{"./in/2.jpg": "x"}')
    assert keys(open_source(tmp_path)) == ["in/2.jpg"]
    assert said(tmp_path) == [f"{tmp_path}/captions.json: left out 2 files (2 .png): without a caption"]


# ------------------------------------------------------------------------------------------------------------- classes


def test_G10_a_part_of_a_set_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    write(tmp_path, "zebra/0.png", "ant/1.png", "ant/2.png")
    source = select(open_source(tmp_path), {"class_name": ["zebra"]})
    assert class_names(source) == ("ant", "zebra")
    assert survey(source, caption_template("{caption}")).classes == (None, "zebra")


def test_G10_code_shards_keep_the_names_of_classes(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "set", "zebra/0.png", "ant/1.png"))
    vae = checkpoint.load(CHECKPOINT).vae
    CodeShards(tmp_path / "codes", source, vae, 10).make(2)
    assert json.loads((tmp_path / "codes/codes.json").read_text())["class_names"] == ["ant", "zebra"]
    CodeShards(tmp_path / "codes", source, vae, 10)  # it knows its own folder again
    assert class_names(open_source(tmp_path / "codes", codes=True)) == ("ant", "zebra")


def test_G10_other_sets_have_no_names(tmp_path: Path) -> None:
    assert class_names(open_source(write(tmp_path, "0.png"))) is None
    assert os.listdir(tmp_path) == ["0.png"]
