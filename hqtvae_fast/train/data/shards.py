"""WebDataset shards with random access: where every member lies in its tar, listed once.

The ``webdataset`` library reads shards from front to back and shuffles in a buffer, so that a run cannot start again at
a given batch. Local tars allow more: a member is a range of bytes in the file.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hqtvae_fast.train.data.packed import PackedStrings, fingerprint

PICTURE_SUFFIXES = (".webp", ".png", ".jpg", ".jpeg")
_ROLES = ("picture", ".json", ".txt", ".cls")
_PICTURE, _JSON, _TEXT, _LABEL = range(len(_ROLES))
_ROLE_OF_SUFFIX = {**dict.fromkeys(PICTURE_SUFFIXES, _PICTURE), ".json": _JSON, ".txt": _TEXT, ".cls": _LABEL}
_BLOCK = 512  # a tar's unit: headers and the padding of members
_MANY_SHARDS = 20  # from here on the indexing shows a progress bar

Member = tuple[int, int, int]
"""Role, first byte and number of bytes."""


class Shards:
    """Samples of local tars: the members that share a name up to its first dot, one of them a picture.

    Fields of a sample are those of its ``.json``; ``caption`` is its ``.txt``, ``label`` the integer of its ``.cls``.
    Members of other kinds, and names without a picture, are left out. The order is that of the shards, then of the
    pictures in them. A sample's key is ``shard.tar/name``. Tars must be uncompressed; ValueError on one that is
    compressed, cut off, without pictures, listed twice, or has two pictures (or conditions of a kind) under one name.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        twice = sorted({file.name for file in files if list(files).count(file) > 1})
        if twice:
            raise ValueError(f"expected each shard once; got {', '.join(twice)} again")
        self.files = tuple(files)
        keys: list[str] = []
        shards: list[int] = []
        spans: list[list[tuple[int, int]]] = []
        for shard, file in enumerate(track(files, "listing shards", transient=True, disable=len(files) < _MANY_SHARDS)):
            for name, members in _samples(file):
                keys.append(f"{file.name}/{name}")
                shards.append(shard)
                spans.append(members)
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
            found = _parse_json(data)
        if (data := self._read(index, _TEXT)) is not None:
            found["caption"] = data.decode("utf-8").strip()
        if (data := self._read(index, _LABEL)) is not None:
            found["label"] = int(data)
        return found

    def fingerprint(self) -> str:
        """Equal for the same shards with the same layout, wherever they lie."""
        return fingerprint(self._keys.tobytes(), self._spans.tobytes())

    def _read(self, index: int, role: int) -> bytes | None:
        first, length = self._spans[index, role]
        if length < 0:
            return None
        # Opened anew each time: workers then share no file position, and a thousand shards need no open files.
        with self.files[self._shards[index]].open("rb") as file:
            file.seek(first)
            data = file.read(length)
        if len(data) != length:
            raise OSError(f"expected {length} bytes at {first} of {file.name}; got {len(data)}")
        return data


def _parse_json(data: bytes) -> dict[str, Any]:
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError(f"expected a mapping in the .json; got {type(found).__name__}")
    return found


def _samples(file: Path) -> list[tuple[str, list[tuple[int, int]]]]:
    """(name, one (first byte, bytes) a role) of each sample of one tar."""
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for name, (role, first, length) in _members(file):
        roles = found.setdefault(name, {})
        if role in roles:
            raise ValueError(f"{file}: expected one {_ROLES[role]} named {name!r}; got two")
        roles[role] = (first, length)
    samples = [
        (name, [roles.get(role, (0, -1)) for role in range(len(_ROLES))])
        for name, roles in found.items()
        if _PICTURE in roles
    ]
    if not samples:
        raise ValueError(f"{file}: expected members named *{', *'.join(PICTURE_SUFFIXES)}; found none")
    return samples


def _members(file: Path) -> Iterator[tuple[str, Member]]:
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                role = _ROLE_OF_SUFFIX.get(f"{dot}{suffix}".lower())
                if member.isreg() and stem and role is not None:
                    yield folder + slash + stem, (role, member.offset_data, member.size)
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
