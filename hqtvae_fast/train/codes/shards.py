"""Codes of a set of pictures as WebDataset shards, made in runs that may stop anywhere and go on.

``codes-000000.tar``, ``codes-000001.tar``, ... hold ``shard_size`` pictures each, in the source's order:

- ``<index>.level_0.npy`` (top), ``<index>.level_1.npy``, ...: codes [h, w], uint16, or int32 for over 65,536 codes;
- ``<index>.json``: the picture's key in its source, and what the source knows of it (label, caption, ...). A field
  ``key`` of the source's own gives way to that key.

``codes.json`` says what they were made from and with (``vae``, a hash, and ``checkpoint``, where that is), and has the
names of the classes that labels number. A shard takes its name when it is whole and on the disk: those that have theirs
are done, and a second run makes the others. Pictures that cannot be read are left out of the shard, and named in
``codes-000000.broken.json`` beside it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hqtvae_fast.engine.coding import Encode, make_encoder
from hqtvae_fast.files import json_text, read_text, whole_file, write_file
from hqtvae_fast.files.shards import add_member, keep_spec
from hqtvae_fast.model import HQVAE
from hqtvae_fast.plan import Plan
from hqtvae_fast.train.codes.cache import vae_hash
from hqtvae_fast.train.data.coded import CHECKPOINT, FORMAT, SPEC_FILE, shard_name
from hqtvae_fast.train.data.selection import class_names
from hqtvae_fast.train.data.sources import Source
from hqtvae_fast.train.data.squares import CentreSquares


@dataclass(frozen=True)
class ShardCount:
    """Pictures ``encoded`` by this run, ``kept`` from earlier ones, and ``broken`` ones in all shards, left out."""

    encoded: int
    kept: int
    broken: int


class CodeShards:
    """The shards of one source's codes in one folder, which is made. ConfigError if it holds another's.

    ``checkpoint``: what the VAE was opened from, for whoever reads the codes; a folder is named from the root on.
    ``plan``: what computes."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        vae: HQVAE,
        shard_size: int,
        *,
        checkpoint: str | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.folder, self.source, self.vae, self.shard_size, self.plan = folder, source, vae, shard_size, plan
        spec = {
            "format": FORMAT,
            "data": source.fingerprint(),
            "vae": vae_hash(vae),
            "pictures": len(source),
            "shard_size": shard_size,
            "sides": list(vae.config.level_sides),
            "codebook_sizes": list(vae.config.codebook_sizes),
        }
        if names := class_names(source):
            spec["class_names"] = list(names)
        notes = {} if checkpoint is None else {CHECKPOINT: _place(checkpoint)}
        if plan is not None:
            notes["plan"] = plan.id
        keep_spec(folder, SPEC_FILE, spec, "codes", notes=notes)

    def __len__(self) -> int:
        return -(-len(self.source) // self.shard_size)

    def file(self, shard: int) -> Path:
        return self.folder / shard_name(shard)

    def span(self, shard: int) -> range:
        """The pictures of a shard, by their indices in the source."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.source)))

    def done(self) -> list[int]:
        return [shard for shard in range(len(self)) if self.file(shard).exists()]

    def make(self, batch: int, *, workers: int = 0, advance: Callable[[int], None] = lambda number: None) -> ShardCount:
        """Encode what is missing, on the VAE's device (on a GPU by one captured graph, shorter batches filled up).
        ``advance`` hears of pictures that are done."""
        done = set(self.done())
        encode = make_encoder(self.vae, batch, self.plan) if len(done) < len(self) else self.vae.encode
        encoded = 0
        for shard in range(len(self)):
            if shard in done:
                advance(len(self.span(shard)))
                continue
            encoded += self._make(shard, encode, batch, workers, advance)
        broken = sum(len(self.broken(shard)) for shard in range(len(self)))
        return ShardCount(encoded, len(self.source) - broken - encoded, broken)

    def broken(self, shard: int) -> list[str]:
        """Keys of a shard's pictures that could not be read."""
        file = self._broken_file(shard)
        return json.loads(read_text(file)) if file.exists() else []

    def _broken_file(self, shard: int) -> Path:
        return self.file(shard).with_suffix(".broken.json")

    def _make(self, shard: int, encode: Encode, batch: int, workers: int, advance: Callable[[int], None]) -> int:
        broken: list[str] = []
        # The list of broken ones stands before the shard does: a shard that has its name is done.
        self._broken_file(shard).unlink(missing_ok=True)
        with whole_file(self.file(shard)) as out:
            with tarfile.open(fileobj=out, mode="w") as tar:
                for index, levels, fields in self._encoded(shard, encode, batch, workers, advance):
                    if levels is None:
                        broken.append(self.source.key(index))
                    else:
                        _add_sample(tar, index, levels, {**fields, "key": self.source.key(index)})
            self._write_broken(shard, broken)
        return len(self.span(shard)) - len(broken)

    def _write_broken(self, shard: int, broken: list[str]) -> None:
        if broken:
            write_file(self._broken_file(shard), json_text(broken, indent=1).encode() + b"\n")

    def _encoded(
        self, shard: int, encode: Encode, batch: int, workers: int, advance: Callable[[int], None]
    ) -> Iterator[tuple[int, list[np.ndarray] | None, dict[str, Any]]]:
        """Index, codes a level and fields of each picture; None for the codes of one that is broken."""
        device = next(self.vae.parameters()).device
        span = self.span(shard)
        squares = CentreSquares(self.source, self.vae.config.resolution, span.start, span.stop)
        at = span.start
        for images, broken in squares.batches(batch, workers=workers, pinned=device.type == "cuda"):
            levels = [level.cpu() for level in encode(images)]
            for row, is_broken in enumerate(broken.tolist()):
                index = at + row
                fields = None if is_broken else _fields(self.source, index)
                yield index, None if fields is None else self._codes(levels, row), fields or {}
            at += len(images)
            advance(len(images))

    def _codes(self, levels: list[Tensor], row: int) -> list[np.ndarray]:
        sizes = self.vae.config.codebook_sizes
        dtypes = [np.uint16 if size <= 2**16 else np.int32 for size in sizes]
        return [level[row].numpy().astype(dtype) for level, dtype in zip(levels, dtypes, strict=True)]


def _place(checkpoint: str) -> str:
    """A folder's full path; the demo model and those of the Hub have names."""
    return str(Path(checkpoint).resolve()) if Path(checkpoint).is_dir() else checkpoint


def _fields(source: Source, index: int) -> dict[str, Any] | None:
    """What the source knows of a picture; None, as of a broken one, if that cannot be read."""
    try:
        return source.fields(index)
    except (ValueError, OSError):
        return None


def _add_sample(tar: tarfile.TarFile, index: int, levels: list[np.ndarray], fields: dict[str, Any]) -> None:
    for level, codes in enumerate(levels):
        data = io.BytesIO()
        np.save(data, codes, allow_pickle=False)
        add_member(tar, f"{index:09d}.level_{level}.npy", data.getvalue())
    add_member(tar, f"{index:09d}.json", json_text(fields).encode())
