"""What a file is by its first bytes: a checkpoint that is none is called by its name."""

from __future__ import annotations

import re
from pathlib import Path

from hqtvae_fast.config import CheckpointError

_BEGINNINGS = {
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\xfd7zXZ\x00": "an xz archive: unpack it",
    b"\x28\xb5\x2f\xfd": "a zstandard archive: unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"Rar!": "a rar archive: unpack it",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF document",
}
_HEAD = 512


def refuse_others(file: Path, expected: str) -> None:
    """CheckpointError, saying what it is, of a file whose first bytes show something else than ``expected``."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    found = _recognised(head)
    if found is not None:
        raise CheckpointError(f"{file}: expected {expected}; got {found}")


def _recognised(head: bytes) -> str | None:
    """What a file that begins like this is; None if it may be a checkpoint's."""
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"\nsize (\d{1,20})\b", head)
        of = f" (the file itself has {int(size.group(1)):,} bytes)" if size else ""
        return f"a Git LFS pointer{of}: get it with 'git lfs pull'"
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        return "a web page, saved in its place: download it again, signed in where that is needed"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it"
    return next((name for start, name in _BEGINNINGS.items() if head.startswith(start)), None)
