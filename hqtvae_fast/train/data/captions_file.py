"""Captions files: which caption goes with which picture file."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hqtvae_fast.files import parse_json, read_text
from hqtvae_fast.pictures.files import is_picture

CAPTION_SUFFIXES = (".json", ".jsonl", ".tsv", ".csv")
_FILE_NAMES = ("file", "file_name", "filename", "image")
_CAPTION_NAMES = ("caption", "text")
_FORMATS = (
    'a .json mapping {"a.png": "a red vase", ...}, a .json list or .jsonl lines of {"file": "a.png", "caption": '
    '"a red vase"}, or .tsv or .csv rows of a file name and a caption'
)


def find_captions(folder: Path) -> Path | None:
    """The folder's captions file, or None. ValueError if there are several."""
    found = [folder / f"captions{suffix}" for suffix in CAPTION_SUFFIXES if (folder / f"captions{suffix}").is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder}: expected one captions file; got {', '.join(file.name for file in found)}")
    return found[0] if found else None


class _Mapping(dict[str, Any]):
    """A JSON object, with all its ``pairs``: a name that comes twice is twice in them."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def read_captions(file: Path) -> dict[str, list[str]]:
    """Captions by file name, both in the file's order. ValueError if it cannot be read so, or a caption is empty.

    A name that comes more than once, ``./a.png`` and ``a.png`` being one, has several captions.
    """
    captions: dict[str, list[str]] = {}
    try:
        for name, caption in _rows(file):
            if not (isinstance(name, str) and name and isinstance(caption, str) and caption.strip()):
                raise ValueError(f"expected a file name and a caption; got {name!r} and {caption!r}")
            captions.setdefault(posixpath.normpath(name), []).append(_sound(caption.strip()))
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (ValueError, csv.Error, OSError) as error:
        raise ValueError(f"{file}: {str(error).removeprefix(f'{file}: ')}; expected {_FORMATS}") from error
    if not captions:
        raise ValueError(f"{file}: no captions; expected {_FORMATS}")
    return captions


def _sound(caption: str) -> str:
    """The caption; ValueError if it holds half of a character, as JSON can say."""
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"expected text; got {caption!r}, with half a character at {error.start}") from None
    return caption


def _rows(file: Path) -> Iterator[tuple[Any, Any]]:
    """(file name, caption) pairs, unchecked."""
    text = read_text(file)
    if file.suffix in (".tsv", ".csv"):
        yield from _table_rows(text, file.suffix)
        return
    if file.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        data: Any = [parse_json(line, f"line {number}", _Mapping) for number, line in lines]
    else:
        data = parse_json(text, file, _Mapping)
    if isinstance(data, _Mapping):
        for name, captions in data.pairs:
            for caption in captions if isinstance(captions, list) and captions else [captions]:
                yield name, caption
    elif isinstance(data, list):
        for row in data:
            yield _entry(row, _FILE_NAMES), _entry(row, _CAPTION_NAMES)
    else:
        raise ValueError(f"got {type(data).__name__}")


def _entry(row: Any, names: tuple[str, ...]) -> Any:
    if not isinstance(row, dict):
        raise ValueError(f"expected a mapping; got {row!r}")
    found = [row[name] for name in names if name in row]
    if not found:
        raise ValueError(f"expected a field named {' or '.join(names)}; got {', '.join(row) or 'none'}")
    return found[0]


def _table_rows(text: str, suffix: str) -> Iterator[tuple[str, str]]:
    tabs = suffix == ".tsv"
    lines = io.StringIO(text, newline="")
    # Strict: what is in quotes ends with the field, and the file does not end in quotes.
    rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
    last = 0
    try:
        for number, row in enumerate(rows):
            first, last = last + 1, rows.line_num
            heading = (
                number == 0 and len(row) == 2 and row[0].lower() in _FILE_NAMES and row[1].lower() in _CAPTION_NAMES
            )
            if heading or not any(cell.strip() for cell in row):
                continue
            if len(row) != 2:
                raise ValueError(f"line {first}: expected a file name and a caption; got {len(row)} columns")
            _check_quotes(row, first)
            yield row[0], row[1]
    except csv.Error as error:
        raise ValueError(f"line {last + 1}: a quote is not closed, or text follows it ({error})") from error


def _check_quotes(row: list[str], first: int) -> None:
    """ValueError where a cell of several lines holds what looks like other rows: a quote was not closed there."""
    for line in "\n".join(row).splitlines()[1:]:
        name, comma, _ = line.partition(",")
        if comma and is_picture(name.strip().strip('"')):
            raise ValueError(f"line {first}: a quote is not closed: it takes in the row of {name.strip()}")
