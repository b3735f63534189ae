"""Files are read as UTF-8 or refused by name, and written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hqtvae_fast.files import MAX_NAME_BYTES, cut_name, read_text, whole_file, write_file


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (file := tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfred apple\n")
    assert read_text(file) == "red apple\n"


@pytest.mark.parametrize("data, found", [("é".encode("utf-16"), "UTF-16"), ("café".encode("latin-1"), "0xe9 at 3")])
def test_other_encodings_name_the_file(tmp_path: Path, data: bytes, found: str) -> None:
    (file := tmp_path / "prompts.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"prompts\.txt: expected text in UTF-8") as raised:
        read_text(file)
    assert found in str(raised.value)


def write_and_fail(file: Path, error: BaseException) -> None:
    with whole_file(file) as out:
        out.write(b"new")
        raise error


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_file(file := tmp_path / "codes.bin", b"old")
    with pytest.raises(RuntimeError):
        write_and_fail(file, RuntimeError())
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["codes.bin"]


def test_a_full_disk_names_the_file_and_a_foreign_error_keeps_its_own(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be written") as raised:
        write_and_fail(tmp_path / "a", OSError(28, "No space left on device"))
    assert raised.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as missing:
        write_and_fail(tmp_path / "a", FileNotFoundError(2, "No such file", "picture.png"))
    assert missing.value.filename == "picture.png"


def test_names_are_cut_in_bytes(tmp_path: Path) -> None:
    cut = cut_name("鯨" * 100)
    assert cut == "鯨" * (MAX_NAME_BYTES // 3)
    write_file(tmp_path / cut, b"")  # its partial file's name, which is longer, fits too
    assert os.listdir(tmp_path) == [cut]
