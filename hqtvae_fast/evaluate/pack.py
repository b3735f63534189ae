"""A set of pictures in another form, so that others' evaluators read ours and ours reads theirs.

``FILE.npz``: ``arr_0``, uint8 [N, R, R, 3], as ADM's evaluator reads it. ``FILE.tar``: a WebDataset shard of ``.png``,
each with a ``.txt`` where its caption is known. Anything else: a folder of ``.png``.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hqtvae_fast.evaluate.pictures import NPZ_PICTURES, Pictures
from hqtvae_fast.files import whole_file
from hqtvae_fast.files.shards import add_member
from hqtvae_fast.pictures.images import BrokenPictureError

Advance = Callable[[int], None]
BATCH = 64


def pack(pictures: Pictures, target: Path, advance: Advance = lambda done: None, workers: int = 0) -> list[str]:
    """Write all pictures, in their order, to a file that is whole or absent, or to a folder, which must be empty.

    Broken ones are left out, and named in what is returned: a message for each. One batch is in memory at a time.
    ValueError if the folder holds anything, or if no picture can be read.
    """
    if target.suffix == ".npz":
        with whole_file(target) as out:
            return _write_npz(out, pictures, advance, workers)
    if target.suffix == ".tar":
        with whole_file(target) as out:
            return _write_tar(out, pictures, advance, workers)
    return _write_folder(target, pictures, advance, workers)


def _write_npz(out: Any, pictures: Pictures, advance: Advance, workers: int) -> list[str]:
    broken = _write_rows(out, pictures, len(pictures), advance, workers)
    if broken:  # the header, which stands first, tells of more rows: once more, with what is known now
        _check_some(pictures, broken)
        out.seek(0)
        out.truncate()
        _write_rows(out, pictures, len(pictures) - len(broken), lambda done: None, workers)
    return broken


def _write_rows(out: Any, pictures: Pictures, number: int, advance: Advance, workers: int) -> list[str]:
    """The array's header and then its rows: it is never in memory as a whole, as ``np.savez`` would want it."""
    broken = list[str]()
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
        "fortran_order": False,
        "shape": (number, pictures.resolution, pictures.resolution, 3),
    }
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        entry = zipfile.ZipInfo(f"{NPZ_PICTURES}.npy")  # without a time: the same pictures make the same file
        with archive.open(entry, "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for images, _ in pictures.batches(BATCH, workers=workers, broken=broken):
                member.write(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()).tobytes())
                advance(len(images))
    return broken


def _write_tar(out: Any, pictures: Pictures, advance: Advance, workers: int) -> list[str]:
    broken = list[str]()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for index, data in _files(pictures, advance, workers, broken):
            add_member(tar, f"{index:06d}.png", data)
            caption = caption_or_none(pictures, index)
            if caption is not None:
                add_member(tar, f"{index:06d}.txt", caption.encode())
    _check_some(pictures, broken)
    return broken


def _write_folder(folder: Path, pictures: Pictures, advance: Advance, workers: int) -> list[str]:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or empty folder, FILE.npz or FILE.tar; it is there")
    folder.mkdir(parents=True, exist_ok=True)
    broken = list[str]()
    for index, data in _files(pictures, advance, workers, broken):
        (folder / f"{index:06d}.png").write_bytes(data)
    _check_some(pictures, broken)
    return broken


def _check_some(pictures: Pictures, broken: list[str]) -> None:
    if len(broken) == len(pictures):
        raise BrokenPictureError(f"{pictures.name}: expected pictures; none can be read, the first: {broken[0]}")


def _files(pictures: Pictures, advance: Advance, workers: int, broken: list[str]) -> Iterator[tuple[int, bytes]]:
    """Each picture's place and PNG file."""
    for images, indices in pictures.batches(BATCH, workers=workers, broken=broken):
        for index, array in zip(indices, images.permute(0, 2, 3, 1).numpy(), strict=True):
            data = io.BytesIO()
            Image.fromarray(array).save(data, "PNG")
            yield index, data.getvalue()
        advance(len(images))


def caption_or_none(pictures: Pictures, index: int) -> str | None:
    """A picture's caption, or None where the set does not say."""
    try:
        return pictures.caption(index)
    except ValueError:
        return None
