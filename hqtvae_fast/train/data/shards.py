"""WebDataset shards with random access: where every member lies in its tar, listed once.

The ``webdataset`` library reads shards from front to back and shuffles in a buffer, so that a run cannot start again at
a given batch. Local tars allow more: a member is a range of bytes in the file.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from hqtvae_fast.files import decode_text, parse_json
from hqtvae_fast.pictures.files import PICTURE_SUFFIXES, USUAL_SUFFIXES, is_hidden, is_picture, kind_of, say_left_out
from hqtvae_fast.train.data.packed import PackedStrings, fingerprint

_ROLES = ("picture", ".json", ".txt", ".cls")
_PICTURE, _JSON, _TEXT, _LABEL = range(len(_ROLES))
_ROLE_OF_SUFFIX = {**dict.fromkeys(PICTURE_SUFFIXES, _PICTURE), ".json": _JSON, ".txt": _TEXT, ".cls": _LABEL}
_BLOCK = 512  # a tar's unit: headers and the padding of members
_MANY_SHARDS = 20  # from here on the indexing shows a progress bar


class Member(NamedTuple):
    """A regular file of a tar: its path there, and its bytes."""

    path: str
    first: int
    length: int


class Shards:
    """Samples of local tars: the members that share a name, one of them a picture.

    Fields of a sample are those of its ``.json``; ``caption`` is its ``.txt``, ``label`` the integer of its ``.cls``,
    or ``cls`` what else that says. The order is that of the shards, then of the pictures in them. A sample's key is
    ``shard.tar/name``.

    A name ends at the first dot of the file's name where one of these suffixes follows. Where more follows, as in
    ``v1.2.png``, it ends at the last dot (the sample is ``v1.2``), unless there is a sample with the shorter name:
    ``a.seg.png`` beside ``a.png`` or ``a.json`` is what WebDataset calls a member ``seg.png`` of ``a``. Such members,
    those of other kinds and hidden ones are left out with a warning that counts them, and names without a picture too.

    Tars must be uncompressed; ValueError on one that is compressed, cut off, without pictures, listed twice, or has two
    pictures (or conditions of a kind) under one name.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        twice = sorted({file.name for file in files if list(files).count(file) > 1})
        if twice:
            raise ValueError(f"expected each shard once; got {', '.join(twice)} again")
        self.files = tuple(files)
        keys: list[str] = []
        shards: list[int] = []
        spans: list[list[tuple[int, int]]] = []
        others = Counter[str]()
        console, few = Console(stderr=True), len(files) < _MANY_SHARDS
        listed = track(files, "listing shards", transient=True, console=console, disable=few)
        for shard, file in enumerate(listed):
            for name, members in _samples(file, others):
                keys.append(f"{file.name}/{name}")
                shards.append(shard)
                spans.append(members)
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        say_left_out(f"{files[0]}{more}", "not named as pictures or their conditions", others)
        self._keys = PackedStrings(keys)
        self._shards = np.array(shards, dtype=np.int32)
        self._spans = np.array(spans, dtype=np.int64)  # [N, role, (first byte, bytes)]; -1 bytes: no such member

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def picture(self, index: int) -> bytes:
        """The picture's file, undecoded. OSError if it cannot be read."""
        data = self._read(index, _PICTURE)
        assert data is not None  # names without a picture are not listed
        return data

    def fields(self, index: int) -> dict[str, Any]:
        """What is known of the picture besides. ValueError if a member does not hold what its suffix says."""
        found: dict[str, Any] = {}
        if (data := self._read(index, _JSON)) is not None:
            found = parse_fields(data, self._member(index, _JSON))
        if (text := self._text(index, _TEXT)) is not None:
            found["caption"] = text.strip()
        if (text := self._text(index, _LABEL)) is not None:
            found |= _class_of(text)
        return found

    def _text(self, index: int, role: int) -> str | None:
        data = self._read(index, role)
        return None if data is None else decode_text(data, self._member(index, role))

    def _member(self, index: int, role: int) -> str:
        """What messages call a member that is no picture."""
        return f"{self.key(index)}{_ROLES[role]}"

    def fingerprint(self) -> str:
        """Equal for the same shards with the same layout, wherever they lie."""
        return fingerprint(self._keys.tobytes(), self._spans.tobytes())

    def _read(self, index: int, role: int) -> bytes | None:
        first, length = self._spans[index, role]
        if length < 0:
            return None
        return read_member(self.files[self._shards[index]], int(first), int(length))


def _class_of(text: str) -> dict[str, Any]:
    """What a ``.cls`` says: a class's number or, as people have it too, its name."""
    try:
        return {"label": int(text)}
    except ValueError:
        return {"cls": text.strip()}


def read_member(file: Path, first: int, length: int) -> bytes:
    """A member's bytes. The tar is opened anew each time: workers then share no file position, and a thousand shards
    need no open files. OSError if they are not all there."""
    with file.open("rb") as tar:
        tar.seek(first)
        data = tar.read(length)
    if len(data) != length:
        raise OSError(f"expected {length} bytes at {first} of {file}; got {len(data)}")
    return data


def parse_fields(data: bytes, name: str) -> dict[str, Any]:
    """A sample's ``.json``. ValueError beginning with ``name`` if it is no mapping."""
    found = parse_json(decode_text(data, name), name)
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected a mapping; got {type(found).__name__}")
    return found


def _samples(file: Path, others: Counter[str]) -> list[tuple[str, list[tuple[int, int]]]]:
    """(name, one (first byte, bytes) a role) of each sample of one tar. ``others`` counts what is left out."""
    found, left_out = _by_name(file)
    samples = [
        (name, [roles.get(role, (0, -1)) for role in range(len(_ROLES))])
        for name, roles in found.items()
        if _PICTURE in roles
    ]
    if not samples:
        there = f", but {', '.join(sorted(left_out)[:6])}" if left_out else ""
        raise ValueError(f"{file}: expected pictures ({USUAL_SUFFIXES}); found none{there}")
    left_out["without a picture"] = len(found) - len(samples)
    others.update(left_out)
    return samples


def _by_name(file: Path) -> tuple[dict[str, dict[int, tuple[int, int]]], Counter[str]]:
    """First byte and bytes of the members of one tar, by sample and role; and how many of which kind are neither."""
    found: dict[str, dict[int, tuple[int, int]]] = {}
    listed, left_out = list(members(file)), Counter[str]()
    short = {name for name, suffix in (_split(member.path) for member in listed) if suffix in _ROLE_OF_SUFFIX}
    for path, first, length in listed:
        name, suffix = _split(path)
        if suffix not in _ROLE_OF_SUFFIX and name not in short:
            name, suffix = posixpath.splitext(path)
        role = _ROLE_OF_SUFFIX.get(suffix.lower())
        if any(map(is_hidden, path.split("/"))):
            left_out["hidden"] += is_picture(path)
        elif role is None:
            left_out[suffix.lower() or kind_of(path)] += 1
        elif role in found.setdefault(name, {}):
            raise ValueError(f"{file}: expected one {_ROLES[role]} named {name!r}; got two")
        else:
            found[name][role] = (first, length)
    return found, +left_out


def _split(path: str) -> tuple[str, str]:
    """A member's path up to the first dot of its file's name, and the rest in lower case."""
    folder, slash, base = path.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return folder + slash + stem, f"{dot}{suffix}".lower()


def members(file: Path) -> Iterator[Member]:
    """The regular files of an uncompressed tar. ValueError if it is none, or cut off."""
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.isreg():
                    yield Member(member.name, member.offset_data, member.size)
            _check_end(file, tar.offset)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{file}: not an uncompressed tar, or cut off ({error})") from error


def _check_end(file: Path, offset: int) -> None:
    """``tarfile`` takes a cut between two members, or a damaged header, for the end: look for the end's mark itself."""
    with file.open("rb") as data:
        data.seek(offset)
        if data.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"no end mark at byte {offset}")
