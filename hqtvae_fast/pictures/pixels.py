"""Pictures that a user gives, as the encoder's input; and the check of that input, whoever gives it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hqtvae_fast.fields import shown
from hqtvae_fast.pictures.images import open_image, to_tensor

EXPECTED = "pictures: PIL images, paths, uint8 arrays [N, H, W, 3] or tensors [N, 3, R, R] in [-1, 1] or uint8"


def read_pixels(images: Any, resolution: int) -> Tensor:
    """Pictures as float32 [N, 3, R, R] in [-1, 1], on the device of a tensor, else on the CPU.

    ``images``: one or several PIL images, paths or uint8 arrays [H, W, 3] or [H, W], fitted to R; an array
    [N, H, W, 3]; or a tensor [N, 3, R, R], floating in [-1, 1] or uint8. ValueError on anything else, naming it.
    """
    if isinstance(images, Tensor):
        return images.to(torch.float32) / 127.5 - 1 if images.dtype is torch.uint8 else images
    if isinstance(images, np.ndarray):
        images = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, (Image.Image, str, os.PathLike)):
        images = [images]
    elif not isinstance(images, Sequence) or isinstance(images, bytes):
        raise ValueError(f"images: expected {EXPECTED}; got {shown(images)}")
    if not images:
        return torch.zeros(0, 3, resolution, resolution, dtype=torch.float32)
    return to_tensor([_picture(image, index) for index, image in enumerate(images)], resolution)


def _picture(image: Any, index: int) -> Image.Image:
    name = f"images[{index}]"
    if isinstance(image, (str, os.PathLike)):
        return open_image(os.fspath(image))
    if isinstance(image, np.ndarray):
        image = _from_array(name, image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"{name}: expected one of {EXPECTED}; got {shown(image)}")
    if 0 in image.size:
        raise ValueError(f"{name}: expected a picture with pixels; got {image.width}x{image.height}")
    if image.mode == "F":
        raise ValueError(f"{name}: expected 8 or 16 bits a channel; got floating point")
    return image


def _from_array(name: str, array: np.ndarray) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped:
        raise ValueError(f"{name}: expected a uint8 array [H, W], [H, W, 3] or [H, W, 4]; got {shown(array)}")
    return Image.fromarray(array)
