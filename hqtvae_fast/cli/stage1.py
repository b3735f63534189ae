"""What ``hqtvae reconstruct`` shows of a batch of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from rich.text import Text
from torch import Tensor

from hqtvae_fast.cli.codes import leave_out
from hqtvae_fast.cli.output import show, table
from hqtvae_fast.cli.pictures import Picture
from hqtvae_fast.images import psnr, to_pil, to_tensor
from hqtvae_fast.pipeline import HQTVAEPipeline


def reconstruct_batch(
    pipe: HQTVAEPipeline, batch: Sequence[Picture], levels: bool
) -> tuple[list[list[Image.Image]], list[float]]:
    """A row of pictures and the PSNR of each image of a batch."""
    pixels = to_tensor([picture.image for picture in batch], pipe.config.vae.resolution)
    codes = pipe.encode(pixels)
    whole: Tensor = pipe.decode(codes, "pt")
    columns = [[picture.image for picture in batch], to_pil(whole)]
    if levels:
        columns += [pipe.decode(leave_out(codes, len(codes), level)) for level in range(len(codes))]
    return [list(row) for row in zip(*columns, strict=True)], psnr(whole, (pixels + 1) / 2).tolist()


def show_quality(pictures: Sequence[Picture], quality: Sequence[float]) -> None:
    shown = table("Reconstruction", "image", "PSNR, dB", "note")
    for picture, decibels in zip(pictures, quality, strict=True):
        shown.add_row(Text(str(picture.path)), f"{decibels:.2f}", "; ".join(picture.changes))
    shown.add_section()
    shown.add_row(f"mean of {len(quality)}", f"{sum(quality) / len(quality):.2f}", "")
    show(shown)
