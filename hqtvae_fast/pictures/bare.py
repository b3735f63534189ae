"""Picture files without their metadata: what is decoded where a decoder failed on the whole file.

Pillow gives up a PNG for the wrong checksum of a comment, and a TIFF for a tag of a wrong type, though the pixels are
sound and other programs show them. What it finds wrong in those of a JPEG or WebP it passes over.
"""

from __future__ import annotations

import struct
import zlib

_PNG, _TIFFS = b"\x89PNG\r\n\x1a\n", {b"II*\0": "<", b"MM\0*": ">"}
_TIFF_KEPT = {*range(254, 267), 273, 277, 278, 279, 284, *range(317, 326), 330, 338, 339, 347, *range(512, 533)}
"""Tags that pixels are made from; the orientation too, if it is one number of 16 bits."""


def without_metadata(data: bytes) -> bytes | None:
    """The file's pixels and its orientation alone; None if it is no PNG or TIFF, or not built like one."""
    try:
        if data.startswith(_PNG):
            return _bare_png(data)
        if byte_order := _TIFFS.get(data[:4]):
            return _bare_tiff(data, byte_order)
    except (struct.error, IndexError):  # cut off, or an offset beyond the end: its caller has the first error
        return None
    return None


def _bare_png(data: bytes) -> bytes:
    """The chunks that must be understood (capital letters say so), transparency, and a sound eXIf."""
    kept, start = [_PNG], len(_PNG)
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 12 + length
        kind, body = data[start + 4 : start + 8], data[start + 4 : end - 4]
        sound = struct.pack(">I", zlib.crc32(body)) == data[end - 4 : end]
        if kind[:1].isupper() or kind == b"tRNS" or (kind == b"eXIf" and sound):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _bare_tiff(data: bytes, byte_order: str) -> bytes:
    """With a shorter list of tags, in its place; of several pictures the first."""
    (start,) = struct.unpack_from(f"{byte_order}I", data, 4)
    (number,) = struct.unpack_from(f"{byte_order}H", data, start)
    entries = [data[start + 2 + 12 * place : start + 14 + 12 * place] for place in range(number)]
    heads = [struct.unpack_from(f"{byte_order}HHI", entry) for entry in entries]
    wanted = [head[0] in _TIFF_KEPT or head == (274, 3, 1) for head in heads]
    kept = [entry for entry, is_wanted in zip(entries, wanted, strict=True) if is_wanted]
    listed = struct.pack(f"{byte_order}H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:start] + listed + data[start + len(listed) :]
