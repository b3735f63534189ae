"""Sets of pictures to be judged: folders, WebDataset shards, and .npz batches as ADM's evaluator reads them.

Pictures are uint8 [B, 3, R, R], as they are stored; those of another size are fitted as in the paper's evaluation.
Any part of a set can be read alone, so that workers share one out.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hqtvae_fast.files import parse_json
from hqtvae_fast.pictures.images import BrokenPictureError, description, fit
from hqtvae_fast.train.data.captions import PLAIN, CaptionTemplate
from hqtvae_fast.train.data.sources import Source, open_source, read_picture

PathLike = str | os.PathLike[str]
NPZ_PICTURES = "arr_0"  # where ADM's files hold them, uint8 [N, H, W, 3]
_FIRST = 100  # pictures among which one must be readable


class PictureBatch(NamedTuple):
    """``images``: uint8 [B, 3, R, R]. ``indices``: their places in the set."""

    images: Tensor
    indices: list[int]


class Pictures(Protocol):
    """A set of pictures in a fixed order. ``name``: what messages call it. ``resolution``: R of what is read."""

    name: str
    resolution: int

    def __len__(self) -> int: ...

    def batches(
        self, size: int, span: range | None = None, workers: int = 0, broken: list[str] | None = None
    ) -> Iterator[PictureBatch]:
        """The pictures of ``span`` (contiguous; None: all), ``size`` at a time.

        A broken one is an error that names it, as measuring the others would measure another set. Where ``broken`` is
        given it is left out instead (batches are shorter then), and its error's message goes into that list.
        """

    def caption(self, index: int) -> str:
        """What a picture should show. ValueError if the set does not say."""

    def shows(self, index: int) -> str:
        """What a picture shows, in words: its caption or its class; empty if the set does not say."""

    def describe(self, index: int) -> str:
        """What messages call a picture."""


def open_pictures(
    paths: PathLike | Sequence[PathLike], resolution: int | None = None, caption: CaptionTemplate = PLAIN
) -> Pictures:
    """An .npz file, or whatever :func:`open_source` opens: folders and shards.

    ``resolution``: the side that pictures are fitted to; None: the first picture's short side. ``caption``: how
    captions are made of a picture's fields. ValueError naming what was expected and what is there.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if len(given) == 1 and str(given[0]).endswith(".npz"):
        return NpzPictures(Path(given[0]), resolution)
    return SourcePictures(open_source(given), str(given[0]), resolution, caption)


class SourcePictures(Dataset[tuple[Tensor, str]]):
    """Pictures of a source: files or members of shards."""

    def __init__(
        self, source: Source, name: str, resolution: int | None = None, caption: CaptionTemplate = PLAIN
    ) -> None:
        self.source, self.name, self._template = source, name, caption
        self.resolution = self._first_side() if resolution is None else resolution

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """uint8 [3, R, R] and "", or zeros and why the picture cannot be read: workers hand on values, not errors."""
        try:
            return _pixels(fit(self._open(index), self.resolution)), ""
        except BrokenPictureError as error:
            return torch.zeros(3, self.resolution, self.resolution, dtype=torch.uint8, device="cpu"), str(error)

    def batches(
        self, size: int, span: range | None = None, workers: int = 0, broken: list[str] | None = None
    ) -> Iterator[PictureBatch]:
        span = range(len(self)) if span is None else span
        loader = DataLoader(
            self,
            batch_size=size,
            sampler=list(span),
            num_workers=workers,
            generator=torch.Generator(),  # else this would take a number from torch's global stream
        )
        first = span.start
        for images, reasons in loader:
            sound = [place for place, reason in enumerate(reasons) if not reason]
            if len(sound) < len(reasons):
                found = [reason for reason in reasons if reason]
                if broken is None:
                    raise BrokenPictureError(found[0])
                broken += found
            if sound:
                yield PictureBatch(images[sound], [first + place for place in sound])
            first += len(images)

    def caption(self, index: int) -> str:
        """The source's, or else what `hqtvae sample` wrote into the picture's file."""
        try:
            return self._template.caption(self.source.fields(index))
        except (ValueError, OSError) as error:
            described = _described(self.source.picture(index), "prompt")
            if described is None:
                raise ValueError(f"{self.name}: {self.source.key(index)}: expected a caption; {error}") from None
            return described

    def shows(self, index: int) -> str:
        with suppress(ValueError):
            return self.caption(index)
        with suppress(ValueError, OSError):
            if isinstance(name := self.source.fields(index).get("class_name"), str):
                return name
        return _described(self.source.picture(index), "class_name") or ""

    def describe(self, index: int) -> str:
        return f"{self.name}: {self.source.key(index)}"

    def _open(self, index: int) -> Image.Image:
        return read_picture(self.source, index, f"{self.name}: ")

    def _first_side(self) -> int:
        """The short side of the first picture that can be read; BrokenPictureError if none can."""
        for index in range(min(len(self), _FIRST)):
            try:
                return min(self._open(index).size)
            except BrokenPictureError as error:
                reason = error
        raise reason


def _described(data: bytes, what: str) -> str | None:
    """The prompt or the name of the class that a PNG's text chunk or a WebP's Exif tells, as `hqtvae sample` writes it;
    None without one."""
    about = description(data)
    if not isinstance(about, str):
        return None
    try:
        found = parse_json(about, "")
    except ValueError:
        return None
    value = found.get(what) if isinstance(found, dict) else None
    return value if isinstance(value, str) else None


class NpzPictures:
    """``arr_0`` of an .npz file, uint8 [N, H, W, 3], read from front to back: never more than a batch is in memory."""

    def __init__(self, path: Path, resolution: int | None = None) -> None:
        self.path, self.name = path, str(path)
        with _open_array(path, NPZ_PICTURES) as (_, shape, dtype):
            if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or min(shape) < 1:
                raise ValueError(f"{path}: {NPZ_PICTURES}: expected uint8 [N, H, W, 3]; got {dtype} {list(shape)}")
            self._shape = shape
        self.resolution = min(shape[1:3]) if resolution is None else resolution

    def __len__(self) -> int:
        return self._shape[0]

    def batches(
        self, size: int, span: range | None = None, workers: int = 0, broken: list[str] | None = None
    ) -> Iterator[PictureBatch]:
        """``workers`` and ``broken`` are for sets of single files; these bytes need no decoding."""
        span = range(len(self)) if span is None else span
        one = math.prod(self._shape[1:])
        with _open_array(self.path, NPZ_PICTURES) as (data, _, _):
            for first in range(span.start, span.stop, size):
                count = min(size, span.stop - first)
                try:
                    if first == span.start:
                        data.seek(first * one, io.SEEK_CUR)
                    block = data.read(count * one)
                except Exception as error:  # of damaged bytes: a wrong checksum, what is no deflated data, ...
                    raise ValueError(
                        f"{self.path}: {NPZ_PICTURES}: damaged from picture {first} on ({error})"
                    ) from error
                if len(block) != count * one:
                    raise ValueError(f"{self.path}: {NPZ_PICTURES}: cut off at picture {first + len(block) // one}")
                yield PictureBatch(self._fitted(block, count), list(range(first, first + count)))

    def _fitted(self, block: bytes, count: int) -> Tensor:
        arrays = np.frombuffer(block, np.uint8).reshape(count, *self._shape[1:])
        if self._shape[1:3] == (self.resolution, self.resolution):
            return torch.from_numpy(arrays.copy()).permute(0, 3, 1, 2)
        return torch.stack([_pixels(fit(Image.fromarray(array), self.resolution)) for array in arrays])

    def caption(self, index: int) -> str:
        raise ValueError(f"{self.path}: expected captions; an .npz of pictures has none")

    def shows(self, index: int) -> str:
        return ""

    def describe(self, index: int) -> str:
        return f"{self.path}: {NPZ_PICTURES}[{index}]"


class _open_array:
    """A member of an .npz, behind its header: yields (file, shape, dtype), and closes both."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __enter__(self) -> tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]:
        try:
            self.archive = zipfile.ZipFile(self.path)
            self.file = self.archive.open(f"{self.name}.npy")
            version = np.lib.format.read_magic(self.file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(self.file)
        except KeyError:
            held = ", ".join(Path(name).stem for name in self.archive.namelist())
            self.archive.close()
            raise ValueError(f"{self.path}: expected an array {self.name}; it holds {held or 'none'}") from None
        except FileNotFoundError:
            raise ValueError(f"{self.path}: no such file") from None
        except Exception as error:  # of damaged bytes: encrypted, compressed in another way, no header of NumPy's, ...
            raise ValueError(f"{self.path}: not an .npz file ({' '.join(str(error).split())})") from error
        if fortran:
            raise ValueError(f"{self.path}: {self.name}: expected C order; got Fortran order")
        return self.file, shape, dtype

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.archive.close()


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
