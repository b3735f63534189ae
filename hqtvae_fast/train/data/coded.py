"""Shards of codes (:mod:`hqtvae_fast.train.codes.shards` writes them) with random access: a source that holds, in the
pictures' place, what an HQ-VAE made of them."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hqtvae_fast.codes import read_level
from hqtvae_fast.files import parse_json, read_text
from hqtvae_fast.train.data.packed import PackedStrings, fingerprint
from hqtvae_fast.train.data.shards import members, parse_fields, read_member

FORMAT = "hqtvae_fast code shards, version 1"
SPEC_FILE = "codes.json"
CHECKPOINT = "checkpoint"
"""In the spec: what made the codes, as whoever opened it named it."""
_LEVEL = re.compile(r"\.level_(\d+)\.npy")
_FIELDS = -1  # the place of a sample's .json among its levels

Span = tuple[int, int]
"""First byte and number of bytes."""


def hold_codes(files: Sequence[Path]) -> bool:
    """Whether these tars are shards of codes: told from the first member that there is."""
    for file in files:
        try:
            with tarfile.open(file, "r:") as tar:
                first = tar.next()
        except (tarfile.TarError, OSError):
            return False  # whoever opens it as something else says what is wrong
        if first is not None:
            return _LEVEL.fullmatch(_split(first.name)[1]) is not None
    return bool(files) and (files[0].parent / SPEC_FILE).is_file()


class CodedPictures:
    """Samples of shards of codes, in the shards' order: codes [h, w] a level, and fields (label, caption, ...).

    ``spec``: what ``codes.json`` beside the first shard says of them, empty without one. ``indices``: each sample's
    place in the set that was encoded. ``class_names``: of its labels, where the spec has them. ValueError on a tar that
    is cut off, has other members, or lacks a level that others have.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.spec = _read_spec(files[0].parent / SPEC_FILE)
        samples = [(shard, name, spans) for shard, file in enumerate(files) for name, spans in _samples(file)]
        levels = {len(spans) for _, _, spans in samples}
        if len(levels) != 1:
            got = ", ".join(str(count - 1) for count in sorted(levels)) or "no codes"
            raise ValueError(f"{files[0].parent}: expected codes of one number of levels in all shards; got {got}")
        self.num_levels = levels.pop() - 1
        self._names = PackedStrings(name for _, name, _ in samples)
        self._shards = np.array([shard for shard, _, _ in samples], dtype=np.int32)
        self._spans = np.array([spans for _, _, spans in samples], dtype=np.int64)  # [N, levels and fields, 2]
        self.indices = np.array([int(name) if name.isdecimal() else -1 for _, name, _ in samples], dtype=np.int64)
        self.class_names: tuple[str, ...] | None = tuple(self.spec.get("class_names", ())) or None

    def __len__(self) -> int:
        return len(self._names)

    @property
    def name(self) -> str:
        """What messages call them: a file, or the folder of several."""
        return str(self.files[0] if len(self.files) == 1 else self.files[0].parent)

    def key(self, index: int) -> str:
        return f"{self.files[self._shards[index]].name}/{self._names[index]}"

    def picture(self, index: int) -> bytes:
        """OSError: there are codes only."""
        raise OSError(f"{self.key(index)} holds codes, no picture")

    def fields(self, index: int) -> dict[str, Any]:
        """What is known of the picture: its ``key`` in the set that was encoded, ``label``, ``caption``, ...

        ValueError if that cannot be read."""
        return parse_fields(self._read(index, _FIELDS), f"{self.key(index)}.json")

    def codes(self, index: int, sides: Sequence[int], sizes: Sequence[int]) -> list[Tensor]:
        """Codes int64 [h, w] a level, top first. ValueError where they are not of a model's ``sides`` and codebook
        ``sizes``, or cannot be read."""
        if len(sides) != self.num_levels:
            raise ValueError(f"{self.name}: expected codes of {len(sides)} levels; got {self.num_levels}")
        found = []
        for level, (side, size) in enumerate(zip(sides, sizes, strict=True)):
            name = f"{self.key(index)}.level_{level}.npy"
            try:
                array = np.load(io.BytesIO(self._read(index, level)), allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{name}: expected an array of codes ({error})") from error
            found.append(read_level(name, array[None], side, size)[0])
        return found

    def fingerprint(self) -> str:
        """Equal for the same shards with the same layout, wherever they lie."""
        vae = str(self.spec.get("vae", "")).encode()
        return fingerprint(self._names.tobytes(), self._spans.tobytes(), self._shards.tobytes(), vae)

    def missing(self) -> list[str]:
        """Names of shards that ``codes.json`` promises and that are not there yet."""
        count = -(-self.spec.get("pictures", 0) // self.spec.get("shard_size", 1))
        names = (shard_name(shard) for shard in range(count))
        return [name for name in names if not (self.files[0].parent / name).exists()]

    def _read(self, index: int, part: int) -> bytes:
        first, length = self._spans[index, part].tolist()
        return read_member(self.files[self._shards[index]], first, length)


def shard_name(shard: int) -> str:
    return f"codes-{shard:06d}.tar"


def _read_spec(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    found = parse_json(read_text(file), file)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{file}: expected {FORMAT!r}")
    return found


def _samples(file: Path) -> list[tuple[str, list[Span]]]:
    """Name and spans of each sample of one tar: its levels', top first, then its fields'."""
    found: dict[str, dict[int, Span]] = {}
    for path, first, length in members(file):
        name, suffix = _split(path)
        level = _LEVEL.fullmatch(suffix)
        if level is None and suffix != ".json":
            raise ValueError(f"{file}: expected codes (.level_0.npy, ...) and their .json; got {path}")
        found.setdefault(name, {})[_FIELDS if level is None else int(level[1])] = (first, length)
    for name, parts in found.items():
        if sorted(parts) != list(range(_FIELDS, len(parts) - 1)):
            raise ValueError(f"{file}: expected levels 0, 1, ... and a .json of {name!r}; got {sorted(parts)}")
    return [(name, [parts[part] for part in [*range(len(parts) - 1), _FIELDS]]) for name, parts in found.items()]


def _split(path: str) -> tuple[str, str]:
    """A member's name up to the first dot, and the rest."""
    stem, dot, suffix = path.rpartition("/")[2].partition(".")
    return stem, f"{dot}{suffix}"


def stacked(pictures: CodedPictures, sides: Sequence[int], sizes: Sequence[int]) -> list[Tensor]:
    """Codes of all pictures, int32 [N, h, w] a level, top first. Errors as :meth:`CodedPictures.codes` has."""
    levels = [torch.empty(len(pictures), side, side, dtype=torch.int32, device="cpu") for side in sides]
    for index in range(len(pictures)):
        for level, own in zip(levels, pictures.codes(index, sides, sizes), strict=True):
            level[index] = own
    return levels
