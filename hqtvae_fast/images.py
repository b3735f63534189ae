"""Picture files and PIL images to the model's tensors, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

WHITE = (255, 255, 255)


def open_image(path: str | Path) -> Image.Image:
    """A picture file as RGB: turned upright as its camera says, transparency over white. ValueError if unreadable."""
    try:
        with Image.open(path) as file:
            return to_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as RGB; what is transparent becomes white, 16-bit greys keep their range. ValueError on floats."""
    if image.mode == "F":
        raise ValueError("expected 8 or 16 bits a channel; got floating point")
    if image.mode.startswith("I"):  # PIL would clip these to 255
        grey = np.clip(np.asarray(image).astype(np.int64) // 257, 0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image).convert("RGB")
    return image.convert("RGB")


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
    font = ImageFont.load_default(size)
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
