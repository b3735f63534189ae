"""Captions files: which caption goes with which picture file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def read_captions(file: Path) -> dict[str, list[str]]:
    """Captions by file name, both in the file's order. ValueError if it cannot be read so, or a caption is empty."""
    captions: dict[str, list[str]] = {}
    try:
        for name, caption in _rows(file):
            if not (isinstance(name, str) and name and isinstance(caption, str) and caption.strip()):
                raise ValueError(f"expected a file name and a caption; got {name!r} and {caption!r}")
            captions.setdefault(name, []).append(caption.strip())
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (ValueError, csv.Error, OSError) as error:  # broken JSON and broken UTF-8 are ValueErrors
        raise ValueError(f"{file}: {error}; expected {_FORMATS}") from error
    if not captions:
        raise ValueError(f"{file}: no captions; expected {_FORMATS}")
    return captions


def _rows(file: Path) -> Iterator[tuple[Any, Any]]:
    """(file name, caption) pairs, unchecked."""
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix in (".tsv", ".csv"):
        yield from _table_rows(text, file.suffix)
        return
    if file.suffix == ".jsonl":
        data: Any = [json.loads(line) for line in text.split("\n") if line.strip()]
    else:
        data = json.loads(text)
    if isinstance(data, dict):
        for name, captions in data.items():
            for caption in captions if isinstance(captions, list) else [captions]:
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
    rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
    for number, row in enumerate(rows):
        heading = number == 0 and len(row) == 2 and row[0] in _FILE_NAMES and row[1] in _CAPTION_NAMES
        if not row or heading:
            continue
        if len(row) != 2:
            raise ValueError(f"row {number + 1}: expected a file name and a caption; got {len(row)} columns")
        yield row[0], row[1]
