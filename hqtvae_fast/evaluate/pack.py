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
from hqtvae_fast.shard_files import add_member

Advance = Callable[[int], None]
BATCH = 64


def pack(pictures: Pictures, target: Path, advance: Advance = lambda done: None, workers: int = 0) -> None:
    """Write all pictures, in their order, to a file that is whole or absent, or to a folder, which must be empty.

    One batch is in memory at a time. ValueError if the folder holds anything.
    """
    if target.suffix == ".npz":
        with whole_file(target) as out:
            _write_npz(out, pictures, advance, workers)
    elif target.suffix == ".tar":
        with whole_file(target) as out:
            _write_tar(out, pictures, advance, workers)
    else:
        _write_folder(target, pictures, advance, workers)


def _write_npz(out: Any, pictures: Pictures, advance: Advance, workers: int) -> None:
    """The array's header and then its rows: it is never in memory as a whole, as ``np.savez`` would want it."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
        "fortran_order": False,
        "shape": (len(pictures), pictures.resolution, pictures.resolution, 3),
    }
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        entry = zipfile.ZipInfo(f"{NPZ_PICTURES}.npy")  # without a time: the same pictures make the same file
        with archive.open(entry, "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for images, _ in pictures.batches(BATCH, workers=workers):
                member.write(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()).tobytes())
                advance(len(images))


def _write_tar(out: Any, pictures: Pictures, advance: Advance, workers: int) -> None:
    with tarfile.open(fileobj=out, mode="w") as tar:
        for index, data in _files(pictures, advance, workers):
            add_member(tar, f"{index:06d}.png", data)
            caption = caption_or_none(pictures, index)
            if caption is not None:
                add_member(tar, f"{index:06d}.txt", caption.encode())


def _write_folder(folder: Path, pictures: Pictures, advance: Advance, workers: int) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or empty folder, FILE.npz or FILE.tar; it is there")
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in _files(pictures, advance, workers):
        (folder / f"{index:06d}.png").write_bytes(data)


def _files(pictures: Pictures, advance: Advance, workers: int) -> Iterator[tuple[int, bytes]]:
    """Each picture's place and PNG file."""
    for images, indices in pictures.batches(BATCH, workers=workers):
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
