"""Text files that users give: UTF-8 with or without a byte order mark; an error names the file, or the member."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from hqtvae_fast.cli import main
from hqtvae_fast.cli.sample import _read_prompts
from hqtvae_fast.evaluate.figures.plots import read_point
from hqtvae_fast.train.data import PictureDataset, open_source
from hqtvae_fast.train.data.captions_file import CAPTION_SUFFIXES, read_captions
from hqtvae_fast.train.presets import read_fields

TEXTS = {
    ".json": '{"a.png": "café"}',
    ".jsonl": '{"file": "a.png", "caption": "café"}',
    ".tsv": "a.png\tcafé",
    ".csv": "a.png,café",
}
WRONG = {"utf-16": "UTF-16", "latin-1": "byte 0xe9"}
DEEP = "[" * 100_000


def shard(folder: Path, **members: bytes) -> Path:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    with tarfile.open(folder / "s.tar", "w") as tar:
        for suffix, content in {"png": data.getvalue(), **members}.items():
            member = tarfile.TarInfo(f"a.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder / "s.tar"


def test_F7_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("red apple\r\ncafé\n".encode("utf-8-sig"))
    assert _read_prompts(tmp_path / "prompts.txt") == ["red apple", "café"]


@pytest.mark.parametrize("encoding", WRONG)
def test_F7_prompts_in_another_encoding_name_the_file(
    encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_bytes("café\n".encode(encoding))
    assert main(["sample", "nowhere", "--prompts", str(tmp_path / "prompts.txt")]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path}/prompts.txt: expected text in UTF-8; got {WRONG[encoding]}" in err


@pytest.mark.parametrize("suffix", CAPTION_SUFFIXES)
def test_F7_captions_are_utf8_or_refused_by_name(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"captions{suffix}"
    file.write_bytes(TEXTS[suffix].encode("utf-8-sig"))
    assert read_captions(file) == {"a.png": ["café"]}
    for encoding, found in WRONG.items():
        file.write_bytes(TEXTS[suffix].encode(encoding))
        with pytest.raises(ValueError, match=rf"captions\{suffix}: expected text in UTF-8; got {found}") as raised:
            read_captions(file)
        assert str(raised.value).count(str(file)) == 1


@pytest.mark.parametrize("text, says", [("{", "got something else"), (DEEP, "got something else"), ("3", "got int")])
def test_F7_captions_that_are_no_json_are_refused_by_name(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(ValueError, match=rf"captions\.json: .*{says}"):
        read_captions(tmp_path / "captions.json")


def test_F7_a_line_of_captions_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "caption": "x"}\n\n{"file": \n')
    with pytest.raises(ValueError, match=r"captions\.jsonl: line 3: expected JSON"):
        read_captions(tmp_path / "captions.jsonl")


def test_F7_a_runs_fields_are_utf8_or_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes("out: café\n".encode("utf-8-sig"))
    assert read_fields(file) == {"out": "café"}
    for encoding, found in WRONG.items():
        file.write_bytes("out: café\n".encode(encoding))
        with pytest.raises(ValueError, match=rf"^\S+run\.yaml: expected text in UTF-8; got {found}"):
            read_fields(file)


def test_F7_results_of_an_evaluation_are_read_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_bytes("{".encode("utf-8-sig"))
    with pytest.raises(ValueError, match=r"eval\.json: expected JSON; got something else \(Expecting property"):
        read_point(f"a={tmp_path}/eval.json,3", "fid")


@pytest.mark.parametrize(
    "members, says",
    [
        ({"txt": "café".encode("latin-1")}, r"s\.tar/a\.txt: expected text in UTF-8; got byte 0xe9 at 3"),
        ({"json": "{}".encode("utf-16")}, r"s\.tar/a\.json: expected text in UTF-8; got UTF-16"),
        ({"json": b"{"}, r"s\.tar/a\.json: expected JSON; got something else"),
        ({"json": DEEP.encode()}, r"s\.tar/a\.json: expected JSON; got something else"),
        ({"json": b"[1]"}, r"s\.tar/a\.json: expected a mapping; got list"),
        ({"cls": "café".encode("latin-1")}, r"s\.tar/a\.cls: expected text in UTF-8; got byte 0xe9 at 3"),
    ],
)
def test_F7_members_that_cannot_be_read_are_named(members: dict[str, bytes], says: str, tmp_path: Path) -> None:
    source = open_source(shard(tmp_path, **members))
    with pytest.raises(ValueError, match=f"^{says}"):
        source.fields(0)
    condition = "class" if "cls" in members else "text"
    with pytest.raises(ValueError, match=says):  # refused when the set is opened, not after a hundred pictures
        PictureDataset(source, 8, condition=condition)


def test_F7_members_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    members = {"txt": "café\n", "json": '{"name": "x"}', "cls": "7\n"}
    source = open_source(shard(tmp_path, **{name: text.encode("utf-8-sig") for name, text in members.items()}))
    assert source.fields(0) == {"name": "x", "caption": "café", "label": 7}
