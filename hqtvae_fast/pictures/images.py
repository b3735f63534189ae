"""Picture files and PIL images to the model's tensors, and back."""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageDraw, UnidentifiedImageError
from torch import Tensor

from hqtvae_fast.pictures.bare import without_metadata
from hqtvae_fast.pictures.files import PICTURE_FORMATS
from hqtvae_fast.pictures.lettering import drawable, font_for

WHITE = (255, 255, 255)
_MAX_REASON = 200  # characters of a decoder's message
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what undoes each orientation of Exif
_PNG_SCALES = {"1": 255, "L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""By how much Pillow scales a PNG's pixels of these raw modes, and not its transparent colour."""
_PILLOWS_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class BrokenPictureError(ValueError):
    """What should be a picture cannot be read as one. The message begins with its name and is one line."""


class Opened(NamedTuple):
    """A picture as RGB, upright, and the ``mode`` (Pillow's) in which it was stored."""

    image: Image.Image
    mode: str


def open_picture(file: str | Path | bytes, name: str | None = None) -> Opened:
    """A picture's file, or what it holds: turned upright as its camera says, transparency over white.

    The one rule for all: metadata never cost a picture (where a decoder fails it is tried without them; an orientation
    that cannot be read turns nothing), and whatever a decoder raises means that the picture is broken.
    BrokenPictureError then, beginning with ``name`` (a path is its own). Python prints nothing.
    """
    name = str(file) if name is None else name
    try:
        return _decode(file)
    except FileNotFoundError:
        raise BrokenPictureError(f"{name}: no such file") from None
    except Exception as error:  # decoders raise whatever comes on damaged data, MemoryError too
        with suppress(Exception):
            bare = without_metadata(file if isinstance(file, bytes) else Path(file).read_bytes())
            if bare is not None:
                return _decode(bare)
        raise BrokenPictureError(f"{name}: not a readable picture ({_reason(error)})") from error


def _decode(file: str | Path | bytes) -> Opened:
    _hush_pillow()
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_formats()) as opened:
        mode = opened.mode
        _scale_transparent_colour(opened)
        opened.load()
        return Opened(_upright(to_rgb(opened), opened), mode)


def open_image(file: str | Path | bytes, name: str | None = None) -> Image.Image:
    """:func:`open_picture`'s image."""
    return open_picture(file, name).image


def description(data: bytes) -> str | None:
    """What a picture's file tells of it: a PNG's text chunk ``Description``, Exif's ImageDescription; or None."""
    try:
        _hush_pillow()
        with Image.open(io.BytesIO(data), formats=_formats()) as opened:
            return opened.info.get("Description") or opened.getexif()[ExifTags.Base.ImageDescription]
    except Exception:  # nothing there, or nothing that can be read
        return None


@cache
def _formats() -> list[str]:
    """Those of our formats that this build of Pillow reads."""
    Image.init()
    return [name for name in PICTURE_FORMATS if name in Image.OPEN]


def _hush_pillow() -> None:
    """What Pillow has to say of damaged files goes into our error or is of no account.

    A filter for good, not one for the time of a call: setting and restoring filters is unsafe with threads, and makes
    Python show all other warnings anew.
    """
    logging.getLogger("PIL").addHandler(_SILENT)  # once, however often it is added
    if _PILLOWS_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


_SILENT = logging.NullHandler()  # without any handler Python prints what is logged


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(opened.getexif()[ExifTags.Base.Orientation])
    except Exception:  # none, or whatever comes on damaged metadata
        return image
    return image if turn is None else image.transpose(turn)


def _scale_transparent_colour(opened: Image.Image) -> None:
    """Before its pixels are loaded, which Pillow scales to 8 bits, put a PNG's transparent colour into their range."""
    colour = opened.info.get("transparency")
    scale = _PNG_SCALES.get(opened.tile[0][3]) if opened.format == "PNG" and opened.tile else None  # type: ignore
    if scale is not None and colour is not None:
        whole = [int(value * scale) for value in (colour if isinstance(colour, tuple) else [colour])]
        opened.info["transparency"] = tuple(whole) if isinstance(colour, tuple) else whole[0]


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format, or damaged in its first bytes"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:_MAX_REASON] or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as RGB; what is transparent becomes white, greys of more than 8 bits keep their range.

    ValueError on floats.
    """
    if image.mode == "F":
        raise ValueError("expected 8 or 16 bits a channel; got floating point")
    if image.mode.startswith("I"):  # PIL would clip these to 255
        return _grey_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image).convert("RGB")
    return image.convert("RGB")


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    """Modes I;16 and I. Nothing says of the second, 32 bits wide, how many of them are used: 8, 16 or 31, the fewest
    that hold all values (a PPM's are always 16)."""
    values = np.asarray(image).astype(np.int64)
    bits = 16
    if image.mode == "I" and image.format != "PPM":
        bits = next(bits for bits in (8, 16, 31) if bits == 31 or values.max(initial=0) < 1 << bits)
    grey = np.clip(values // {8: 1, 16: 257, 31: 1 << 23}[bits], 0, 255).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def fit(image: Image.Image, resolution: int) -> Image.Image:
    """Short side to ``resolution``, then the centre square, as in the paper's evaluation."""
    if image.size == (resolution, resolution):
        return image
    # Cutting the square out first, in the same filter pass, keeps a very long picture from being scaled up whole.
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box)


def to_tensor(images: Sequence[Image.Image], resolution: int) -> Tensor:
    """PIL images, fitted, as float32 [B, 3, R, R] in [-1, 1]."""
    arrays = [np.asarray(fit(to_rgb(image), resolution)) for image in images]
    pixels_BHWC = torch.from_numpy(np.stack(arrays)).float()
    return pixels_BHWC.permute(0, 3, 1, 2) / 127.5 - 1


def to_pil(images: Tensor) -> list[Image.Image]:
    """Float images [B, 3, H, W] in [0, 1] as PIL images."""
    bytes_BHWC = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in bytes_BHWC]


def grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Images of one size as a sheet, row by row, on white. ``columns`` defaults to a sheet about square."""
    if not images:
        raise ValueError("grid: expected at least one image, got none")
    columns = min(math.ceil(math.sqrt(len(images))) if columns is None else columns, len(images))
    if columns < 1:
        raise ValueError(f"columns: expected 1 or more; got {columns}")
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), WHITE)
    for index, image in enumerate(images):
        sheet.paste(image, ((index % columns) * (width + gap), (index // columns) * (height + gap)))
    return sheet


def enlarge(image: Image.Image, scale: int) -> Image.Image:
    """``scale`` times as large, smoothly."""
    if scale == 1:
        return image
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)


def with_caption(image: Image.Image, text: str) -> Image.Image:
    """The picture above a line of text, which is cut to its width."""
    size = max(9, min(18, image.width // 12))
    text = " ".join(drawable(text).split())
    font = font_for(text, size)
    while text and font.getlength(text) > image.width:
        text = text[:-2].rstrip("\u2026 ") + "\u2026" if len(text) > 2 else ""
    sheet = Image.new("RGB", (image.width, image.height + size * 3 // 2), WHITE)
    sheet.paste(image, (0, 0))
    ImageDraw.Draw(sheet).text((image.width / 2, image.height + size * 3 / 4), text, (40, 40, 40), font, anchor="mm")
    return sheet


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images [B, 3, H, W] in [0, 1]: [B]; infinite for equal ones."""
    error_B = (images - references).square().flatten(1).mean(dim=1)
    return -10 * error_B.log10()
