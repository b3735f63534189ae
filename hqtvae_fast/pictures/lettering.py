"""Fonts for what stands beside pictures: Pillow's own for English, for other scripts one that is found here."""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Many scripts in one file, where systems keep them: Linux, macOS, Windows.
_NAMES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf"),
    *("Arial Unicode.ttf", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc"),
    *("arial.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf"),
)
_NO_LETTER = "\uffff"  # of no script: a font draws it as it draws any letter that it lacks


def drawable(text: str) -> str:
    """Without what is no letter of any font: spaces for control characters, and a mark where the text is damaged."""
    kinds = ((letter, unicodedata.category(letter)) for letter in text)
    return "".join(
        " " if kind == "Cc" and letter != "\n" else "\ufffd" if kind == "Cs" else letter
        for letter, kind in kinds
        if kind != "Cf"
    )


def font_for(text: str, size: int) -> Font:
    """Pillow's own where it has every letter of ``text``; else, of it and those of this machine, the one that lacks
    fewest. What is lacking is drawn as an empty box. ``size``: pixels."""
    own = ImageFont.load_default(size)
    letters = sorted({letter for letter in text if not letter.isspace()})
    best, fewest = own, _lacking(own, letters)
    for file in _found() if fewest else ():
        other = ImageFont.truetype(file, size)
        lacking = _lacking(other, letters)
        if lacking < fewest:
            best, fewest = other, lacking
    return best


def _lacking(font: Font, letters: list[str]) -> int:
    if all(letter.isascii() for letter in letters):
        return 0
    box = _drawn(font, _NO_LETTER)
    return sum(_drawn(font, letter) == box for letter in letters)


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@cache
def _found() -> tuple[str, ...]:
    """Files of fonts, matplotlib's last: DejaVu Sans again, where training or evaluation is installed."""
    found = []
    for name in _NAMES:
        try:
            found.append(str(ImageFont.truetype(name, 12).path))
        except OSError:
            continue
    matplotlib = find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        file = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        found += [str(file)] if file.is_file() else []
    return tuple(found)
