"""How far two sets of shards agree: which emoji in which styles, their fields, and their pictures."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageChops, ImageStat

from emoji_set import BuildError


@dataclass
class Comparison:
    """Counts of (name, style) pairs; ``psnr`` has the decibels of each shared picture that is not equal."""

    shared: int = 0
    only_ours: list[str] = field(default_factory=list)
    only_theirs: list[str] = field(default_factory=list)
    equal_fields: int = 0
    same_shard: int = 0
    equal_bytes: int = 0
    equal_pixels: int = 0
    psnr: list[float] = field(default_factory=list)

    @property
    def mean_psnr(self) -> float:
        """Of the shared pictures that differ; infinite if none does."""
        return sum(self.psnr) / len(self.psnr) if self.psnr else math.inf


@dataclass(frozen=True)
class _Stored:
    shard: str
    fields: dict[str, Any]
    picture: bytes


def compare(ours: Iterable[Path], theirs: Iterable[Path]) -> Comparison:
    """Compares the samples of some shards with those of others, by name and style. BuildError on an unreadable one."""
    mine, others = _read_all(ours), _read_all(theirs)
    result = Comparison()
    result.only_ours = [" ".join(pair) for pair in mine if pair not in others]
    result.only_theirs = [" ".join(pair) for pair in others if pair not in mine]
    for pair, one in mine.items():
        if other := others.get(pair):
            result.shared += 1
            result.equal_fields += one.fields == other.fields
            result.same_shard += one.shard == other.shard
            _compare_pictures(one.picture, other.picture, result)
    return result


def _compare_pictures(one: bytes, other: bytes, result: Comparison) -> None:
    if one == other:
        result.equal_bytes += 1
        result.equal_pixels += 1
        return
    decibels = psnr(_decode(one), _decode(other))
    if math.isinf(decibels):
        result.equal_pixels += 1
    else:
        result.psnr.append(decibels)


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise, in decibels, of two RGB pictures; the second is scaled to the first one's size."""
    if one.size != other.size:
        other = other.resize(one.size, Image.Resampling.LANCZOS)
    difference = ImageStat.Stat(ImageChops.difference(one, other))
    error = sum(difference.sum2) / sum(difference.count)
    return 10 * math.log10(255**2 / error) if error else math.inf


def _decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _read_all(files: Iterable[Path]) -> dict[tuple[str, str], _Stored]:
    found: dict[tuple[str, str], _Stored] = {}
    for file in files:
        try:
            with tarfile.open(file) as tar:
                members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
            for name, data in members.items():
                if name.endswith(".json"):
                    fields = json.loads(data)
                    picture = members[str(PurePosixPath(name).with_suffix(".webp"))]
                    found[fields["name"], fields["style"]] = _Stored(file.name, fields, picture)
        except (tarfile.TarError, OSError, ValueError, KeyError) as error:
            raise BuildError(f"{file}: expected a shard of .webp and .json with name and style; {error!r}") from error
    return found
