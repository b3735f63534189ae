"""Text files read, and files written whole or not at all: what every part of the package that touches a disk uses."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PARTIAL = ".partial"
"""What the name of a file ends in that is being written; it begins with a dot."""
MAX_NAME_BYTES = 255  # of one file name on every file system in use
MAX_STEM_BYTES = MAX_NAME_BYTES - 24  # leaves room for a number and a suffix
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(file: Path) -> str:
    """A text file in UTF-8, without the byte order mark that some editors put first.

    ValueError, naming the file, on one in another encoding; OSError as usual where it cannot be read.
    """
    return decode_text(file.read_bytes(), file)


def decode_text(data: bytes, name: str | Path) -> str:
    """:func:`read_text` of bytes that were read, from a member of a shard say, whose ``name`` an error begins with."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = _BYTE_ORDER_MARKS.get(data[:2], f"byte 0x{data[error.start]:02x} at {error.start}")
        raise ValueError(f"{name}: expected text in UTF-8; got {found}: save it as UTF-8") from error


def parse_json(text: str, name: str | Path, mapping: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """JSON as Python's values; ValueError beginning with ``name`` if it is none. ``mapping``: makes what stands for an
    object, of its pairs."""
    try:
        return json.loads(text, object_pairs_hook=mapping)
    except (ValueError, RecursionError) as error:  # thousands of brackets are no JSON that anyone meant
        raise ValueError(f"{name}: expected JSON; got something else ({error})") from error


def json_text(value: Any, indent: int | None = None, *, allow_nan: bool = True) -> str:
    """JSON that is valid UTF-8 whatever names are in it: a file's name may hold any bytes, which Python keeps as lone
    surrogates and which stand here as ``\\xe9``. ValueError on NaN or infinity unless ``allow_nan``."""
    return _SURROGATE.sub(_escaped, json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=allow_nan))


def _escaped(surrogate: re.Match[str]) -> str:
    code = ord(surrogate[0])
    return f"\\\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\\\u{code:04x}"


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file to write into, which takes the name ``path`` once all of it is on the disk; else nothing is left.

    Folders are made; a link stays one; what is there and is no regular file (a pipe, ``/dev/stdout``) is written to as
    it is. OSError names ``path``.
    """
    if path.exists() and not path.is_file():
        with _naming(path), path.open("wb") as out:
            yield out
        return
    target = Path(os.path.realpath(path))
    # Processes of several machines may share the folder: a process's number alone does not tell them apart.
    mark = f".{socket.gethostname()[:32]}-{os.getpid()}{PARTIAL}"
    partial = target.with_name(f".{cut_name(target.name, MAX_NAME_BYTES - len(mark) - 1)}{mark}")
    try:
        with _naming(path, target.parent, partial):
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, target)
        sync_folder(target.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path, *ours: Path) -> Iterator[None]:
    """An OSError of writing (a full disk's has no name) names ``path``; one of another file stays what it is."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) not in (path, *ours):
            raise
        raise OSError(error.errno, f"cannot be written ({error.strerror or error})", str(path)) from error


def write_file(path: Path, data: bytes) -> None:
    """:func:`whole_file` of bytes that are there already."""
    with whole_file(path) as out:
        out.write(data)


def sync_folder(folder: Path) -> None:
    """Wait until a new name in ``folder`` is on the disk: after a power cut a rename may else be undone."""
    with suppress(OSError):  # not every file system lets a folder be opened or synced
        _sync(folder)


def sync_files(folder: Path) -> None:
    """Wait until all that others have written into ``folder``, files and names, is on the disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            _sync(path)
    sync_folder(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cut_name(name: str, most: int = MAX_NAME_BYTES) -> str:
    """The name, cut to ``most`` bytes: file systems count bytes, and a character of UTF-8 has up to four."""
    data = os.fsencode(name)
    return name if len(data) <= most else data[:most].decode("utf-8", "ignore")


def first_line(error: Exception) -> str:
    """Of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
