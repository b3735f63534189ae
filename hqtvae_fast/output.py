"""What the pipeline returns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hqtvae_fast.fields import shown
from hqtvae_fast.pictures.images import grid, to_pil

OutputType = Literal["pil", "np", "pt", "codes"]
OUTPUT_TYPES = get_args(OutputType)


@dataclass(frozen=True, repr=False)
class HQTVAEOutput:
    """Drawn pictures; in a notebook, a sheet of them.

    ``images``: a list of PIL images, a float32 array [N, R, R, 3] (``np``) or tensor [N, 3, R, R] (``pt``) in [0, 1],
    or None (``codes``). ``codes``: int64 [N, h, w] a level on the CPU, top first. ``seeds``: one integer an image;
    given as ``seed=[...]`` they draw the same images again. ``plan``: the id of the plan that computed them, under
    which they do so bit for bit.
    """

    images: Any
    codes: tuple[Tensor, ...]
    seeds: tuple[int, ...]
    plan: str = ""

    def grid(self, columns: int | None = None, gap: int = 2) -> Image.Image:
        """The pictures on one sheet, row by row, on white. ``columns`` defaults to a sheet about square. ValueError
        where there are none."""
        if self.images is None:
            raise ValueError("grid: expected pictures; got codes alone (output_type='codes')")
        return grid(_as_pil(self.images), columns, gap)

    def _repr_png_(self) -> bytes | None:
        return None if self.images is None or not len(self.images) else _png(self.grid())

    def __repr__(self) -> str:
        count = len(self.seeds)
        seeds = ", ".join(map(str, self.seeds[:_SHOWN])) + (", ..." if count > _SHOWN else "")
        pictures = f"{count} picture{'' if count == 1 else 's'}"
        return f"HQTVAEOutput({pictures}: {_kind(self.images)}; codes {_maps(self.codes)}; seeds {seeds})"


@dataclass(frozen=True, repr=False)
class HQTVAEImage:
    """One picture of a stream: its place in the request; the picture, [R, R, 3] for ``np``, [3, R, R] for ``pt``, None
    for ``codes``; its codes, int64 [h, w] a level; its seed; and the id of the plan that computed it."""

    index: int
    image: Any
    codes: tuple[Tensor, ...]
    seed: int
    plan: str = ""

    def _repr_png_(self) -> bytes | None:
        if self.image is None:
            return None
        return _png(self.image if isinstance(self.image, Image.Image) else _as_pil(self.image[None])[0])

    def __repr__(self) -> str:
        return f"HQTVAEImage({self.index}: {_kind(self.image)}; codes {_maps(self.codes)}; seed {self.seed})"


_SHOWN = 4  # seeds in a repr


def _as_pil(images: Any) -> list[Image.Image]:
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    return to_pil(images) if isinstance(images, Tensor) else list(images)


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _kind(images: Any) -> str:
    """What the pictures, or the one picture, are."""
    if images is None:
        return "codes alone"
    one = images[0] if isinstance(images, list) and images else images
    if isinstance(one, Image.Image):
        return f"PIL {one.width}x{one.height}"
    return "PIL" if isinstance(one, list) else shown(one)


def _maps(codes: Sequence[Tensor]) -> str:
    return " + ".join("x".join(map(str, level.shape[-2:])) for level in codes)


def convert_images(images: Tensor, output_type: str) -> Any:
    """Images float32 [N, 3, R, R] in [0, 1], for ``pil`` uint8 [N, R, R, 3], as the type asked for."""
    if output_type == "pil":
        return [Image.fromarray(picture) for picture in images.numpy()]
    if output_type == "np":
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    return images
