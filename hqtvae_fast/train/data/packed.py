"""Many strings in two blocks of memory, and what identifies a set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np


class PackedStrings:
    """A list of strings that never changes, kept as their bytes end to end.

    Worker processes share such a block. A list of a million strings they would copy bit by bit: reading a Python object
    writes to its reference count, and so to the page of memory that it lies in.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        # surrogateescape: file names need not be valid UTF-8
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._block = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        """String ``index``, 0 <= index < len; IndexError outside."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index in [0, {len(self)}); got {index}")
        start, end = self._ends[index : index + 2]
        return self._block[start:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def tobytes(self) -> bytes:
        """Equal for equal strings, and only for them."""
        return self._ends.tobytes() + self._block


def fingerprint(*parts: bytes) -> str:
    """16 hexadecimal digits, equal for equal parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]
