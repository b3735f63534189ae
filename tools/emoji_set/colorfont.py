"""Pictures out of a colour font: just enough of OpenType to find an emoji's PNG (tables cmap, GSUB, CBLC, CBDT).

FreeType could draw them too. But it hands out colours multiplied with their opacity and rounded, so that the soft edges
come back changed; and it draws emoji made of several code points only where Pillow finds the text shaping library.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

from PIL import Image

from emoji_set import BuildError
from emoji_set.names import without_variation

_METRICS = {17: 5, 18: 8, 19: 0}  # bytes before the PNG's length, by image format
_LIGATURE, _EXTENSION = 4, 7  # kinds of substitution
_STRIKE_BYTES = 48
_NONE = -1  # no glyph


class ColorFont:
    """The PNGs of a font's largest strike. BuildError if the font has none, or is damaged."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        try:
            tables = self._directory()
            if missing := [tag for tag in ("cmap", "CBLC", "CBDT") if tag not in tables]:
                got = ", ".join(sorted(tables)) or "none"
                raise BuildError(f"font: expected tables {', '.join(missing)} (a font of colour bitmaps); got {got}")
            self._glyphs = self._cmap(tables["cmap"])
            self._ligatures = self._all_ligatures(tables["GSUB"]) if "GSUB" in tables else {}
            self._spans = self._strike(tables["CBLC"], tables["CBDT"])
        except struct.error as error:
            raise BuildError(f"font: expected an OpenType font; got a damaged file ({error})") from error

    def picture(self, codepoints: Sequence[str]) -> Image.Image | None:
        """The emoji's picture, RGBA, or None if the font has no single glyph for it."""
        glyphs = tuple(self._glyphs.get(int(code, 16), _NONE) for code in without_variation(codepoints))
        glyph = glyphs[0] if len(glyphs) == 1 else self._ligatures.get(glyphs, _NONE)
        if glyph not in self._spans:
            return None
        start, format_ = self._spans[glyph]
        (length,) = self._read(">I", start + _METRICS[format_])
        start += _METRICS[format_] + 4
        try:
            return Image.open(io.BytesIO(self._data[start : start + length])).convert("RGBA")
        except (OSError, ValueError) as error:
            raise BuildError(f"font: expected a PNG for {' '.join(codepoints)}; {error}") from error

    def _read(self, format_: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(format_, self._data, at)

    def _array(self, code: str, at: int, count: int) -> tuple[int, ...]:
        return self._read(f">{count}{code}", at)

    def _counted(self, at: int) -> tuple[int, ...]:
        """16-bit numbers after their count."""
        return self._array("H", at + 2, self._read(">H", at)[0])

    def _directory(self) -> dict[str, int]:
        (count,) = self._read(">H", 4)
        records = (self._read(">4s4xI4x", 12 + 16 * index) for index in range(count))
        return {tag.decode("latin-1"): at for tag, at in records}

    def _cmap(self, table: int) -> dict[int, int]:
        """Glyphs by code point, from the subtable that reaches beyond 16 bits."""
        (count,) = self._read(">H", table + 2)
        for index in range(count):
            at = table + self._read(">4xI", table + 4 + 8 * index)[0]
            if self._read(">H", at)[0] == 12:
                (groups,) = self._read(">I", at + 12)
                found: dict[int, int] = {}
                for group in range(groups):
                    first, last, glyph = self._read(">III", at + 16 + 12 * group)
                    found |= {code: glyph + code - first for code in range(first, last + 1)}
                return found
        raise BuildError("font: expected a character map of format 12; got none")

    def _all_ligatures(self, table: int) -> dict[tuple[int, ...], int]:
        """Glyphs by the glyphs that they stand for; of two for the same, the first lookup's."""
        lookups = table + self._read(">8xH", table)[0]
        found: dict[tuple[int, ...], int] = {}
        for offset in self._counted(lookups):
            kind, _, count = self._read(">HHH", lookups + offset)
            for subtable in self._array("H", lookups + offset + 6, count):
                at = lookups + offset + subtable
                if kind == _EXTENSION:
                    _, inner, distance = self._read(">HHI", at)
                    if inner == _LIGATURE:
                        found = self._ligature_sets(at + distance) | found
                elif kind == _LIGATURE:
                    found = self._ligature_sets(at) | found
        return found

    def _ligature_sets(self, at: int) -> dict[tuple[int, ...], int]:
        found: dict[tuple[int, ...], int] = {}
        firsts = self._coverage(at + self._read(">H", at + 2)[0])
        for first, set_offset in zip(firsts, self._counted(at + 4), strict=False):
            for offset in self._counted(at + set_offset):
                glyph, count = self._read(">HH", at + set_offset + offset)
                rest = self._array("H", at + set_offset + offset + 4, count - 1)
                found.setdefault((first, *rest), glyph)
        return found

    def _coverage(self, at: int) -> list[int]:
        format_, count = self._read(">HH", at)
        if format_ == 1:
            return list(self._array("H", at + 4, count))
        ranges = (self._read(">HH", at + 4 + 6 * index) for index in range(count))
        return [glyph for first, last in ranges for glyph in range(first, last + 1)]

    def _strike(self, sizes: int, pictures: int) -> dict[int, tuple[int, int]]:
        """(first byte, image format) by glyph, of the strike with the most pixels."""
        (count,) = self._read(">I", sizes + 4)
        if not count:
            raise BuildError("font: expected bitmaps of some size; got none")
        strikes = [sizes + 8 + _STRIKE_BYTES * index for index in range(count)]
        strike = max(strikes, key=lambda at: self._read(">B", at + 44)[0])
        array, _, subtables = self._read(">III", strike)
        found: dict[int, tuple[int, int]] = {}
        for index in range(subtables):
            first, last, offset = self._read(">HHI", sizes + array + 8 * index)
            at = sizes + array + offset
            format_, image_format, base = self._read(">HHI", at)
            if format_ not in (1, 3) or image_format not in _METRICS:
                raise BuildError(f"font: expected PNGs in an index of format 1 or 3; got {image_format} in {format_}")
            places = self._array("I" if format_ == 1 else "H", at + 8, last - first + 2)
            for glyph, start, end in zip(range(first, last + 1), places, places[1:], strict=False):
                if end > start:
                    found[glyph] = (pictures + base + start, image_format)
        return found
