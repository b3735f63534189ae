"""The three styles: where each finds an emoji's picture, and how a picture becomes a training picture.

- noto: Noto Color Emoji, the PNGs of 136x128 pixels inside the font; OFL-1.1 (font) and Apache-2.0 (pictures).
- fluent: Microsoft's Fluent emoji, rendered in 3D, WebP of 256x256 pixels; MIT.
- twemoji: Twitter's, SVG drawn by resvg at the size wanted; CC-BY-4.0. The package has PNGs of 72x72 pixels as well:
  they can stand in where resvg cannot be installed, but enlarged they are soft.

Fluent's and Twemoji's files are named after the code points, as in ``1f636-200d-1f32b-fe0f``, where FE0F may be left
out; of files that differ in that alone, the first in the alphabet is taken. Twemoji drops leading zeros too (``a9``,
``23-20e3``). Those fourteen, the signs © and ® and the keycaps, are letters and digits on a plain ground, and are left
out.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

from PIL import Image, UnidentifiedImageError

from emoji_set import BuildError
from emoji_set.archives import read_files
from emoji_set.colorfont import ColorFont
from emoji_set.names import Emoji, without_variation

Draw = Callable[[Emoji], "Image.Image | None"]
"""An emoji's picture, RGBA, or None if the style has none."""


@dataclass(frozen=True)
class Style:
    name: str
    license: str
    draw: Draw


def noto(path: Path) -> Style:
    """From the font, or a package or folder with it."""
    fonts = read_files(path, "*.ttf")
    if len(fonts) != 1:
        raise BuildError(f"{path}: expected one .ttf; got {', '.join(sorted(fonts))}")
    font = ColorFont(next(iter(fonts.values())))
    return Style("noto", "OFL-1.1/Apache-2.0", lambda emoji: font.picture(emoji.codepoints))


def fluent(path: Path) -> Style:
    """From the package, or a folder of WebP or PNG files."""
    return Style("fluent", "MIT", _named(path, ("*.webp",), _decode))


def twemoji(path: Path, resvg: ModuleType, size: int) -> Style:
    """From the package or a folder of SVG files, drawn at ``size``."""

    def draw(data: bytes, name: str) -> Image.Image:
        try:
            return _decode(bytes(resvg.svg_to_bytes(svg_string=data.decode(), width=size, height=size)), name)
        except ValueError as error:
            raise BuildError(f"{name}: expected an SVG that resvg can draw; {error}") from error

    return Style("twemoji", "CC-BY-4.0", _named(path, ("*.svg",), draw))


def twemoji_png(path: Path) -> Style:
    """From the package's PNG files, or a folder of such."""
    return Style("twemoji", "CC-BY-4.0", _named(path, ("*.png",), _decode))


def compose(picture: Image.Image, size: int) -> Image.Image:
    """RGB [size, size]: on white, in the middle of a square as long as its long side, then scaled."""
    side = max(picture.size)
    ground = Image.new("RGBA", (side, side), "white")
    ground.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return ground.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def _named(path: Path, patterns: tuple[str, ...], decode: Callable[[bytes, str], Image.Image]) -> Draw:
    """Pictures that are found by their file names."""
    files: dict[tuple[str, ...], tuple[str, bytes]] = {}
    for name, data in sorted(read_files(path, *patterns).items()):
        files.setdefault(without_variation(PurePosixPath(name).stem.upper().split("-")), (name, data))

    def draw(emoji: Emoji) -> Image.Image | None:
        found = files.get(without_variation(emoji.codepoints))
        return decode(found[1], found[0]) if found else None

    return draw


def _decode(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data)).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise BuildError(f"{name}: expected a picture; {error}") from error
