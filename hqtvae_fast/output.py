"""What the pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from hqtvae_fast.images import to_pil

OutputType = Literal["pil", "np", "pt", "codes"]
OUTPUT_TYPES = get_args(OutputType)


@dataclass(frozen=True)
class HQTVAEOutput:
    """Drawn pictures.

    ``images``: a list of PIL images, a float32 array [N, R, R, 3] (``np``) or tensor [N, 3, R, R] (``pt``) in [0, 1],
    or None (``codes``). ``codes``: int64 [N, h, w] a level on the CPU, top first. ``seeds``: one integer an image;
    given as ``seed=[...]`` they draw the same images again.
    """

    images: Any
    codes: tuple[Tensor, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class HQTVAEImage:
    """One picture of a stream: its place in the request; the picture, [R, R, 3] for ``np``, [3, R, R] for ``pt``, None
    for ``codes``; its codes, int64 [h, w] a level; and its seed."""

    index: int
    image: Any
    codes: tuple[Tensor, ...]
    seed: int


def convert_images(images: Tensor, output_type: str) -> Any:
    """Images float32 [N, 3, R, R] in [0, 1] as the type asked for."""
    if output_type == "pil":
        return to_pil(images)
    if output_type == "np":
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    return images
