"""Samples, which of them are held out, and shards that are equal byte by byte whenever their samples are."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from emoji_set import BuildError
from emoji_set.compositions import Composition, HeldPairs, draw
from emoji_set.names import Emoji
from emoji_set.styles import Style, compose

SPLITS = ("train", "val")
# Of WebP. Lossy: hardly to be told from the picture, at the smallest size that takes. Lossless: a tenth larger than it
# need be, in a tenth of the time.
_LOSSY = {"quality": 95, "method": 6}
_LOSSLESS = {"lossless": True, "quality": 20, "method": 2}


@dataclass(frozen=True)
class Sample:
    """A picture as WebP, its fields as JSON, and whether it is held out."""

    key: str
    style: str
    webp: bytes
    json: bytes
    held_out: bool


def make_samples(
    emoji: Iterable[Emoji], styles: Iterable[Style], size: int, one_in: int, seed: int
) -> Iterator[Sample]:
    """One sample for each emoji and style that has it, in the emoji's order."""
    styles = list(styles)
    for one in emoji:
        for style in styles:
            picture = style.draw(one)
            if picture is not None:
                key = f"{style.name}-{one.stem}"
                webp = _webp(compose(picture, size))
                yield Sample(key, style.name, webp, _fields(one, style), is_held_out(key, one_in, seed))


def make_composed(
    composed: Iterable[Composition], emoji: Mapping[str, Emoji], styles: Iterable[Style], size: int, held: HeldPairs
) -> Iterator[Sample]:
    """One sample for each composition. ``emoji``: by name. BuildError if a thing has no picture in a style.

    Lossless, as what is lossy halves the resolution of colours and blurs what stands out by its colour alone.
    """
    drawn = {style.name: style for style in styles}
    known: dict[tuple[str, str], Image.Image] = {}
    for one in composed:
        for thing in one.things:
            if (thing, one.style) not in known:
                picture = drawn[one.style].draw(emoji[thing]) if one.style in drawn and thing in emoji else None
                if picture is None:
                    raise BuildError(f"{thing}: expected a picture in the style {one.style}; there is none")
                known[thing, one.style] = picture
        picture = draw(one, [known[thing, one.style] for thing in one.things], size)
        fields = _composed_fields(one, held.of(one), drawn[one.style])
        yield Sample(one.key, one.style, _webp(picture, lossless=True), fields, bool(held.of(one)))


def is_held_out(key: str, one_in: int, seed: int = 0) -> bool:
    """Whether a sample goes to val: about one in ``one_in`` (none for 0), by a hash of its key alone.

    So a sample's side does not change when others come or go; and since an emoji's styles have different keys, val
    asks for a picture that was seen in other styles only.
    """
    digest = hashlib.sha256((f"{seed}:{key}" if seed else key).encode()).digest()
    return one_in > 0 and int.from_bytes(digest, "big") % one_in == 0


def share_to_one_in(share: float) -> int:
    """The whole number n for which a share is 1 / n, as nearly as can be; 0 for 0."""
    if not 0 <= share <= 0.5:
        raise BuildError(f"--held-out: expected a share from 0 to 0.5; got {share}")
    return round(1 / share) if share else 0


def write_shards(samples: Iterable[Sample], out: Path, size: int, kind: str = "emoji") -> dict[str, dict[str, int]]:
    """Writes ``<kind>-<size>-train.tar`` and ``-val.tar`` into ``out``; returns numbers of pictures by split and style.

    They are written beside their places and moved there at the end, so that a run that fails leaves what was there. A
    split without samples has no shard.
    """
    out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    partial = {split: out / f".{shard_name(size, split, kind)}.{os.getpid()}" for split in SPLITS}
    try:
        with ExitStack() as stack:
            # USTAR has no room for anything that could differ between two runs
            tars = {
                split: stack.enter_context(tarfile.open(file, "w", format=tarfile.USTAR_FORMAT))
                for split, file in partial.items()
            }
            for sample in samples:
                split = SPLITS[sample.held_out]
                _add(tars[split], f"{sample.key}.webp", sample.webp)
                _add(tars[split], f"{sample.key}.json", sample.json)
                counts[split][sample.style] = counts[split].get(sample.style, 0) + 1
        if not counts["train"]:
            raise BuildError("expected pictures; got none: no emoji has one in any of the styles")
        for split in SPLITS:
            if counts[split]:
                os.replace(partial[split], out / shard_name(size, split, kind))
            else:
                (out / shard_name(size, split, kind)).unlink(missing_ok=True)
    finally:
        for file in partial.values():
            file.unlink(missing_ok=True)
    return counts


def shard_name(size: int, split: str, kind: str = "emoji") -> str:
    return f"{kind}-{size}-{split}.tar"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults: time 0, user 0 without a name, mode 644
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _webp(picture: Image.Image, *, lossless: bool = False) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", **(_LOSSLESS if lossless else _LOSSY))
    return buffer.getvalue()


def _fields(emoji: Emoji, style: Style) -> bytes:
    fields = {
        "codepoints": " ".join(emoji.codepoints),
        "group": emoji.group,
        "keywords": list(emoji.keywords),
        "license": style.license,
        "name": emoji.name,
        "style": style.name,
        "subgroup": emoji.subgroup,
    }
    return json.dumps(fields, ensure_ascii=False).encode()


def _composed_fields(one: Composition, held: tuple[str, ...], style: Style) -> bytes:
    fields = {
        "background": one.background,
        "caption": list(one.captions()),
        "facing": one.facing,
        "held_out": list(held),
        "license": style.license,
        "size": one.size,
        "style": one.style,
        "things": list(one.things),
    }
    return json.dumps(fields, ensure_ascii=False).encode()
