"""Arrays of numbers that others wrote: read from a file by name, and checked before anything is computed from them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NEGATIVE = 1e-5
"""Of a covariance's Frobenius norm: how far below 0 rounding to single precision may push an eigenvalue."""
ASYMMETRY = 1e-5  # of its largest entry


def array_names(path: Path) -> set[str]:
    """Names of an .npz file's arrays, whatever the file is called; none if it is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return set()


class ArrayFile:
    """An .npz file's arrays, by name: of a kind, a number of dimensions, and finite. ValueError names the array.

    An array's header is compared with the bytes that the archive holds for it before any memory is taken.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def numbers(self, name: str, shape: str) -> Tensor:
        """float64 of as many dimensions as ``shape`` names: "n, d"."""
        return _finite(torch.from_numpy(self._array(name, "fiu", shape).astype(np.float64)), name)

    def whole_number(self, name: str, low: int) -> int | None:
        """Of ``low`` at least; None where there is none by that name."""
        if f"{name}.npy" not in self._archive.namelist():
            return None
        value = self._array(name, "fiu").item()
        if value != value or value in (float("inf"), float("-inf")) or value != int(value) or value < low:
            raise ValueError(f"{name}: expected an integer of {low} or more; got {value}")
        return int(value)

    def text(self, name: str) -> str | None:
        """None where there is none by that name."""
        return str(self._array(name, "U").item()) if f"{name}.npy" in self._archive.namelist() else None

    def _array(self, name: str, kinds: str, expected: str = "") -> np.ndarray[Any, Any]:
        info = self._archive.getinfo(f"{name}.npy")
        with self._archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.kind not in kinds or len(shape) != len(expected.split()):
                what = "text" if kinds == "U" else f"numbers [{expected}]" if expected else "a number"
                raise ValueError(f"{name}: expected {what}; got {dtype} {list(shape)}")
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if min(shape, default=0) < 0 or size > info.file_size:
                raise ValueError(f"{name}: expected {size:,} bytes for {list(shape)}; got at most {info.file_size:,}")
            data = file.read(size)
        if len(data) != size:
            raise ValueError(f"{name}: expected {size:,} bytes; got {len(data):,}")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def require_finite(arrays: Iterable[tuple[str, Tensor]]) -> None:
    """ValueError naming the first array with a NaN or an infinity, and the place of it."""
    for name, array in arrays:
        _finite(array, name)


def _finite(array: Tensor, name: str) -> Tensor:
    wrong = ~array.isfinite()
    if bool(wrong.any()):
        place = tuple(int(index) for index in wrong.nonzero()[0])
        raise ValueError(f"{name}: expected finite values; got {float(array[place])} at {list(place)}")
    return array


def require_covariance(matrix: Tensor, name: str) -> None:
    """ValueError unless a finite [d, d] is symmetric and has no clearly negative eigenvalue."""
    wide = matrix.double()
    apart, largest = float((wide - wide.T).abs().max()), float(wide.abs().max())
    if apart > ASYMMETRY * largest:
        raise ValueError(f"{name}: expected a symmetric matrix; entries and their mirrors' differ by up to {apart:.3g}")
    if largest == 0:
        return
    wide = (wide + wide.T) / (2 * largest)
    allowed = NEGATIVE * float(wide.norm())
    lifted = wide + allowed * torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    if int(torch.linalg.cholesky_ex(lifted).info) != 0:
        lowest = float(torch.linalg.eigvalsh(wide)[0])
        if lowest < -allowed:
            raise ValueError(f"{name}: expected no negative eigenvalue; got {lowest * largest:.3g}")
