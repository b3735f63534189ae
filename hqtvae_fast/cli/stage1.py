"""What ``hqtvae reconstruct`` and ``encode`` do with pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.text import Text
from torch import Tensor

from hqtvae_fast.cli.codes import leave_out
from hqtvae_fast.cli.output import show, table
from hqtvae_fast.cli.pictures import Picture, Reader
from hqtvae_fast.config import level_names
from hqtvae_fast.engine.coding import make_encoder
from hqtvae_fast.pictures.images import psnr, to_pil, to_tensor
from hqtvae_fast.pipeline import HQTVAEPipeline

Row = list[tuple[Image.Image, str]]  # pictures and their captions


def reconstruct_batch(pipe: HQTVAEPipeline, batch: Sequence[Picture], levels: bool) -> Iterator[tuple[Row, float]]:
    """Of each picture: itself, its reconstruction and, if ``levels``, each level alone; and the PSNR of the second."""
    pixels = to_tensor([picture.image for picture in batch], pipe.config.vae.resolution)
    codes = pipe.encode(pixels)
    kept: dict[str, int | None] = {"all levels": None}
    if levels:
        kept |= {f"{name} only": level for level, name in enumerate(level_names(len(codes)))}
    columns, quality = [], []
    for level in kept.values():
        decoded: Tensor = pipe.decode(leave_out(codes, len(codes), level), "pt")
        columns.append(to_pil(decoded))
        quality.append(psnr(decoded, (pixels + 1) / 2).tolist())
    for picture, shown, decibels in zip(batch, zip(*columns, strict=True), zip(*quality, strict=True), strict=True):
        captions = [f"{name}: {own:.1f} dB" for name, own in zip(kept, decibels, strict=True)]
        yield [(picture.image, "original"), *zip(shown, captions, strict=True)], decibels[0]


def encode_files(
    pipe: HQTVAEPipeline, reader: Reader, files: Sequence[Path], size: int, advance: Callable[[int], None]
) -> tuple[list[Tensor], list[str]]:
    """Codes [N, h, w] a level of the files that can be read, and the names of these."""
    encoder = make_encoder(pipe.vae, min(size, len(files)), pipe.plan)
    names: list[str] = []
    parts: list[tuple[Tensor, ...]] = []
    for batch in reader.batches(files, size, advance):
        pixels = to_tensor([picture.image for picture in batch], reader.resolution)
        parts.append(tuple(level.cpu() for level in encoder(pixels)))
        names += [str(picture.path) for picture in batch]
    return [torch.cat(level) for level in zip(*parts, strict=True)], names


def show_quality(pictures: Sequence[Picture], quality: Sequence[float]) -> None:
    shown = table("Reconstruction", "image", "PSNR, dB", "note")
    for picture, decibels in zip(pictures, quality, strict=True):
        shown.add_row(Text(str(picture.path)), f"{decibels:.2f}", "; ".join(picture.changes))
    shown.add_section()
    shown.add_row(f"mean of {len(quality)}", f"{sum(quality) / len(quality):.2f}", "")
    show(shown)
