"""Reading many picture files, of which some may be bad."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer
from PIL import Image

from hqtvae_fast.cli.output import count, say_errors
from hqtvae_fast.pictures.files import say_left_out, walk
from hqtvae_fast.pictures.images import BrokenPictureError, fit, open_picture


@dataclass(frozen=True)
class Picture:
    """A file's picture, RGB at the model's resolution; ``changes`` says what was done to it."""

    path: Path
    image: Image.Image
    changes: tuple[str, ...]


@dataclass
class Reader:
    """Reads files in batches. A bad one is noted in ``failures`` and left out; ``changes`` counts what was done."""

    resolution: int
    failures: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)

    def batches(self, files: Sequence[Path], size: int, advance: Callable[[int], None]) -> Iterator[list[Picture]]:
        """The pictures of ``size`` files at a time, without the bad ones. ``advance`` hears of files that are done."""
        for start in range(0, len(files), size):
            part, pictures = files[start : start + size], []
            for path in part:
                try:
                    pictures.append(self.read(path))
                except BrokenPictureError as error:
                    self.failures.append(str(error))
            if pictures:
                yield pictures
            advance(len(part))

    def read(self, path: Path) -> Picture:
        image, mode = open_picture(path)
        changes = []
        side = self.resolution
        if image.size != (side, side):
            changes.append(f"{image.width}x{image.height} resized and centre-cropped")
            self.changes[f"resized and centre-cropped to {side}x{side}"] += 1
        if mode != "RGB":
            changes.append(f"{mode} converted to RGB")
            self.changes["converted to RGB"] += 1
        return Picture(path, fit(image, side), tuple(changes))

    def report(self) -> None:
        """Say on stderr what was done to how many pictures, and which files were bad."""
        for change, number in self.changes.items():
            typer.echo(f"note: {count(number, 'picture')} {change}", err=True)
        say_errors(self.failures)


def find_pictures(paths: Iterable[Path]) -> list[Path]:
    """The files named, and the pictures in the folders named; ValueError if a folder has none."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        pictures, others = walk(path)
        if not pictures:
            there = f", but {', '.join(sorted(others)[:6])}" if others else ""
            raise ValueError(f"{path}: no pictures in this folder{there}")
        say_left_out(path, "not named as pictures", others)
        files += [path / name for name in pictures]
    return files
