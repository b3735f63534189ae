"""Where pictures come from: shards, class folders, a folder with captions, a flat folder. All are indexed."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from hqtvae_fast.pictures.files import USUAL_SUFFIXES, is_hidden, kind_of, say_left_out, walk
from hqtvae_fast.pictures.images import BrokenPictureError, open_image
from hqtvae_fast.train.data.captions_file import CAPTION_SUFFIXES, find_captions, read_captions
from hqtvae_fast.train.data.coded import CodedPictures, hold_codes
from hqtvae_fast.train.data.packed import PackedStrings, fingerprint
from hqtvae_fast.train.data.shards import Shards

PathLike = str | os.PathLike[str]
_SHOWN = 5  # names that an error message lists
_BRACES = re.compile(r"\{([^{}]*)\}")
EXPECTED = (
    "one or more .tar shards (a pattern such as train-{000..099}.tar or *.tar will do), a folder of them, "
    f"a folder with a file captions{'/'.join(CAPTION_SUFFIXES)}, a folder of class folders, or a folder of pictures "
    f"({USUAL_SUFFIXES})"
)


class Source(Protocol):
    """Pictures by index, in a fixed order, each with named fields such as ``label`` and ``caption``."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """A name for error messages and records, the same wherever the data lie."""

    def picture(self, index: int) -> bytes:
        """The picture's file, undecoded. OSError if it cannot be read."""

    def fields(self, index: int) -> dict[str, Any]:
        """What is known of the picture besides. ValueError or OSError if that cannot be read."""

    def fingerprint(self) -> str:
        """16 characters, equal for equal names and conditions in an equal order: what a resumed run compares."""


def read_picture(source: Source, index: int, of: str = "") -> Image.Image:
    """A picture of a source, as :func:`open_image` has it. BrokenPictureError, which begins with ``of`` and its key, if
    it cannot be read or is none."""
    name = f"{of}{source.key(index)}"
    try:
        data = source.picture(index)
    except OSError as error:
        raise BrokenPictureError(f"{name}: cannot be read ({error.strerror or error})") from error
    return open_image(data, name)


class Folder:
    """Picture files under ``root``: ``names`` are their paths from there, also their keys; no fields."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root, self._names = root, PackedStrings(names)

    def __len__(self) -> int:
        return len(self._names)

    def key(self, index: int) -> str:
        return self._names[index]

    def picture(self, index: int) -> bytes:
        return (self.root / self._names[index]).read_bytes()

    def fields(self, index: int) -> dict[str, Any]:
        return {}

    def fingerprint(self) -> str:
        return fingerprint(self._names.tobytes())


class ClassFolder(Folder):
    """A folder of class folders. Fields: ``label``, the place of the class among ``class_names``, and ``class_name``.

    Class names are those given, or else the folders' names, sorted; ``labels`` int64 are all pictures'. ``names``: the
    pictures, as :func:`walk` lists them, which it does by default. ValueError on a folder that is not among the names
    given, or without pictures.
    """

    def __init__(
        self, root: Path, class_names: Sequence[str] | None = None, *, names: Sequence[str] | None = None
    ) -> None:
        folders, names = _subfolders(root), walk(root).pictures if names is None else names
        self.class_names = tuple(folders if class_names is None else class_names)
        if unknown := [name for name in folders if name not in self.class_names]:
            raise ValueError(f"{root}: expected folders named as in class_names; got {_listed(unknown)}")
        names = [name for name in names if "/" in name]
        sizes = {folder: len(list(group)) for folder, group in groupby(names, key=lambda name: name.split("/")[0])}
        if empty := [folder for folder in folders if folder not in sizes]:
            linked = " but those of a folder that it links to" if (root / empty[0]).is_symlink() else ""
            raise ValueError(f"{root / empty[0]}: expected pictures of class {empty[0]!r}; found none{linked}")
        super().__init__(root, names)
        places = [self.class_names.index(folder) for folder in sizes]
        self.labels = np.repeat(np.array(places, dtype=np.int64), list(sizes.values()))

    def fields(self, index: int) -> dict[str, Any]:
        label = int(self.labels[index])
        return {"label": label, "class_name": self.class_names[label]}

    def fingerprint(self) -> str:
        return fingerprint(self._names.tobytes(), self.labels.tobytes())


class CaptionedFolder(Folder):
    """The pictures that a captions file names, in its order; others in the folder are left out. Field: ``caption``.

    ``caption`` is a string, or a list of them for a picture that the file names more than once. ValueError on a name
    without a file.
    """

    def __init__(self, file: Path) -> None:
        captions = read_captions(file)
        if missing := [name for name in captions if not (file.parent / name).is_file()]:
            raise ValueError(f"{file}: expected captions of pictures beside it; there is no {_listed(missing)}")
        without = [name for name in walk(file.parent).pictures if name not in captions]
        say_left_out(file, "without a caption", map(kind_of, without))
        super().__init__(file.parent, captions)
        counts = [len(of_picture) for of_picture in captions.values()]
        self._ends = np.cumsum([0, *counts], dtype=np.int64)
        self._captions = PackedStrings(caption for of_picture in captions.values() for caption in of_picture)

    def fields(self, index: int) -> dict[str, Any]:
        captions = [self._captions[place] for place in range(self._ends[index], self._ends[index + 1])]
        return {"caption": captions[0] if len(captions) == 1 else captions}

    def fingerprint(self) -> str:
        return fingerprint(self._names.tobytes(), self._ends.tobytes(), self._captions.tobytes())


def open_source(
    paths: PathLike | Sequence[PathLike], *, class_names: Sequence[str] | None = None, codes: bool = False
) -> Source:
    """The pictures at a path, whose kind is told from what lies there; shards may be several paths or patterns.

    ``class_names``: the labels 0, 1, ... of class folders, for a set whose folders are not all the classes (a part kept
    for evaluation, say). ``codes``: shards of codes will do too (:class:`CodedPictures`). ValueError if nothing there
    fits, naming what was expected and what was found.
    """
    given = [os.fspath(paths)] if isinstance(paths, (str, os.PathLike)) else [os.fspath(path) for path in paths]
    if len(given) == 1 and Path(given[0]).is_dir():
        source = _open_folder(Path(given[0]), class_names, codes)
    elif len(given) == 1 and given[0].endswith(CAPTION_SUFFIXES):
        source = CaptionedFolder(Path(given[0]))
    else:
        source = _open_shards(_shard_files(given), codes)
    if class_names is not None and not isinstance(source, ClassFolder):
        raise ValueError(f"class_names: expected a folder of class folders; got {given[0]}")
    return source


def are_codes(paths: PathLike | Sequence[PathLike]) -> bool:
    """Whether shards of codes lie at a path, or at the first of several: looked at without reading what else may."""
    path = Path(paths if isinstance(paths, (str, os.PathLike)) else paths[0])
    if path.is_dir():
        return hold_codes(sorted(file for file in path.glob("*.tar") if not is_hidden(file.name)))
    return path.suffix == ".tar" and hold_codes(_expand(str(path)))


def _open_shards(files: Sequence[Path], codes: bool) -> Source:
    if not hold_codes(files):
        return Shards(files)
    if not codes:
        raise ValueError(f"{files[0]}: expected pictures; got codes, which decode, sample and train stage2 read")
    return CodedPictures(files)


def _open_folder(folder: Path, class_names: Sequence[str] | None, codes: bool) -> Source:
    captions = find_captions(folder)
    if captions is not None:
        return CaptionedFolder(captions)
    shards = sorted(file for file in folder.glob("*.tar") if not is_hidden(file.name))
    found, others = walk(folder)
    pictures = [name for name in found if "/" not in name]
    kinds = {"shards": bool(shards), "pictures": bool(pictures), "class folders": len(found) > len(pictures)}
    there = [kind for kind, is_there in kinds.items() if is_there]
    if len(there) != 1:
        left_out = f" (but {', '.join(sorted(others)[:_SHOWN])})" if others and not there else ""
        raise ValueError(f"{folder}: expected {EXPECTED}; found {' and '.join(there) or 'none of these'}{left_out}")
    if shards:
        return _open_shards(shards, codes)
    say_left_out(folder, "not named as pictures", others)
    return Folder(folder, pictures) if pictures else ClassFolder(folder, class_names, names=found)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def _shard_files(patterns: Sequence[str]) -> list[Path]:
    files = [file for pattern in patterns for file in _expand(pattern)]
    others = [str(file) for file in files if file.suffix != ".tar"]
    if others or not files:
        raise ValueError(f"expected {EXPECTED}; got {_listed(others) or 'no path'}")
    return files


def _expand(pattern: str) -> list[Path]:
    """The files that a pattern stands for, sorted where it is ``*``; ValueError if one is missing.

    Folders that are there as written are taken as they are, whatever brackets and braces their names hold.
    """
    path = Path(pattern)
    if path.exists():
        return [path]
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    files: list[Path] = []
    for rest in _expand_braces(str(path.relative_to(folder))):
        matches = sorted(glob.glob(rest, root_dir=folder)) if glob.has_magic(rest) else [rest]
        if not matches or not (folder / matches[0]).exists():
            raise ValueError(f"{folder / rest}: no such file; expected {EXPECTED}")
        files += [folder / match for match in matches]
    return files


def _expand_braces(pattern: str) -> list[str]:
    """``a-{08..11}.tar`` and ``{a,b}.tar`` as a shell expands them."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    first, dots, last = braces[1].partition("..")
    if dots and not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"{pattern}: expected numbers in {braces[0]}, as in {{000..099}}")
    if dots:
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    return [path for choice in choices for path in _expand_braces(_fill(pattern, braces.span(), choice))]


def _fill(pattern: str, span: tuple[int, int], choice: str) -> str:
    return pattern[: span[0]] + choice + pattern[span[1] :]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
