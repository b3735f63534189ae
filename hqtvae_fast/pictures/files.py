"""Which files are pictures: one list of formats and one walk of folders, for every command and every kind of set."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from hqtvae_fast.world import world

PICTURE_FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "QOI": (".qoi",),
    "ICO": (".ico",),
    "ICNS": (".icns",),
    "PSD": (".psd",),
    "DDS": (".dds",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "PCX": (".pcx",),
    "TGA": (".tga",),
}
"""Formats by Pillow's names, in the order in which they are tried, with their suffixes: what Pillow reads as pixels by
itself. Left out are those that it hands to other programs (EPS, WMF) and those that it only recognises. TGA is last, as
nothing in its first bytes says what it is."""
PICTURE_SUFFIXES = tuple(suffix for suffixes in PICTURE_FORMATS.values() for suffix in suffixes)
USUAL_SUFFIXES = "png, jpg, webp, gif, bmp, tif, avif, ..."  # for messages
_SHOWN = 6  # kinds of files that a warning lists


class Found(NamedTuple):
    """``pictures``: their paths from the folder, with ``/``, folder by folder. ``others``: how many files of which kind
    (their suffix, or ``hidden`` pictures) lie there too."""

    pictures: list[str]
    others: Counter[str]


def is_picture(name: str) -> bool:
    """Whether a file's name ends as a picture's does, in whatever case."""
    return name.lower().endswith(PICTURE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a name, of a file or a folder, is left out everywhere: those with a dot first, and what macOS adds."""
    return (name.startswith(".") and name not in (".", "..")) or name == "__MACOSX"


def kind_of(name: str) -> str:
    """What a file that is no picture is counted as."""
    return os.path.splitext(name)[1].lower() or "without a suffix"


def walk(folder: Path) -> Found:
    """All pictures in a folder and those below it. OSError where one cannot be listed.

    Each folder is read once: links to folders are followed after all real ones have been, so that a link back into the
    tree, or round in a circle, adds nothing. A link that leads nowhere is a picture if it is named like one: reading it
    will say that it is missing.
    """
    pictures, others = list[str](), Counter[str]()
    read: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        path = folders.pop() if folders else links.pop(0)
        status = (folder / path).stat()
        if (status.st_dev, status.st_ino) in read:
            continue
        read.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(folder / path), key=lambda entry: entry.name):
            if _is_folder(entry):
                if not is_hidden(entry.name):
                    (links if entry.is_symlink() else folders).append(f"{path}{entry.name}/")
            elif is_hidden(entry.name):
                others["hidden"] += is_picture(entry.name)
            elif not is_picture(entry.name):
                others[kind_of(entry.name)] += 1
            elif entry.is_symlink() or entry.is_file():  # a pipe would be waited for
                pictures.append(f"{path}{entry.name}")
    return Found(sorted(pictures, key=lambda name: name.split("/")), +others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir() raises on a link that leads to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def say_left_out(where: str | Path, why: str, kinds: Iterable[str]) -> None:
    """Warn, in one line, of files that are not part of a set: how many of which kind. Of several processes one does."""
    counted = +Counter(kinds)
    if counted and world().rank == 0:
        most = [f"{number:,} {kind}" for kind, number in counted.most_common(_SHOWN)]
        more = ["..."] if len(counted) > _SHOWN else []
        files = "1 file" if counted.total() == 1 else f"{counted.total():,} files"
        warnings.warn(f"{where}: left out {files} ({', '.join(most + more)}): {why}", stacklevel=3)
