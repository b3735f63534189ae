"""The pictures that a run leaves at intervals, as sheets with names."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from hqtvae_fast.pictures.images import psnr, to_pil
from hqtvae_fast.pictures.sheet import Cell, Row, Sheet

SIDE = 128  # of a picture on a sheet, at least
PLACES, COLUMNS = 16, 4  # of what is drawn
NAME_WIDTH = 20  # characters of a line beside a row


def reconstruction_sheet(images: Tensor, rebuilt: Tensor, names: Sequence[str], title: str) -> Image.Image:
    """Pictures with their names, above what the model makes of them with its PSNR.

    Both float [B, 3, R, R] in [-1, 1]; ``title``: which pictures they are.
    """
    pixels, made = (tensor.float().clamp(-1, 1) * 0.5 + 0.5 for tensor in (images, rebuilt))
    decibels = psnr(made, pixels).tolist()
    above = [Cell(image, name) for image, name in zip(to_pil(pixels), names, strict=True)]
    below = [Cell(image, f"{own:.1f} dB") for image, own in zip(to_pil(made), decibels, strict=True)]
    mean = sum(decibels) / len(decibels)
    return _sheet([Row(title, above), Row(f"rebuilt\n{mean:.1f} dB on average", below)])


def pictures_of_each(subjects: int) -> int:
    """How many :func:`drawn_sheet` shows of each subject: all places of a single one, a row of few, one of many."""
    return PLACES if subjects == 1 else COLUMNS if subjects <= COLUMNS else 1


def drawn_sheet(subjects: Sequence[str], images: Sequence[Image.Image]) -> Image.Image:
    """Drawn pictures of classes or captions, as many of each, subject after subject; a subject may be empty."""
    each = len(images) // len(subjects)
    if 1 < len(subjects) <= COLUMNS and each > 1:
        rows = [images[start : start + each] for start in range(0, len(images), each)]
        named = zip(subjects, rows, strict=True)
        return _sheet([Row(textwrap.fill(name, NAME_WIDTH), [Cell(image) for image in row]) for name, row in named])
    cells = [Cell(image, subjects[index // each]) for index, image in enumerate(images)]
    return _sheet([Row("", cells[start : start + COLUMNS]) for start in range(0, len(cells), COLUMNS)])


def _sheet(rows: Sequence[Row]) -> Image.Image:
    width = next(cell.image.width for row in rows for cell in row.cells if cell.image is not None)
    return Sheet(rows, scale=-(-SIDE // width)).draw()
