"""Checks of the encoder's input, and of what it gave. NaN would otherwise become code 0, and bytes garbage."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.codes import can_look, is_traced

PIXEL_LIMIT = 1.05  # of images nominally in [-1, 1]: room for rounding and for filters that overshoot


def check_shape(images: Tensor, R: int) -> None:
    """ValueError unless they are [B, 3, R, R]."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, R, R):
        raise ValueError(f"images: expected [B, 3, {R}, {R}]; got {list(images.shape)}")


def check_images(images: Tensor, R: int, *, wait: bool = False) -> None:
    """ValueError unless they are floating [B, 3, R, R] in [-1, 1]; on a GPU their values are looked at only by a caller
    that says that it may ``wait``."""
    check_shape(images, R)
    if not images.is_floating_point():
        dtype = str(images.dtype).removeprefix("torch.")
        raise ValueError(f"images: expected floating-point numbers from -1 to 1; got {dtype}")
    if images.numel() and (wait or can_look(images)):
        low, high = (float(bound) for bound in images.detach().aminmax())
        if low < -PIXEL_LIMIT or high > PIXEL_LIMIT:  # NaN is neither, and found by what it gives
            raise ValueError(f"images: expected values from -1 to 1; got {low:.4g} to {high:.4g}")


def none_yet(images: Tensor) -> Tensor:
    """bool [B] on the images' device: no image is invalid so far."""
    return torch.zeros(len(images), dtype=torch.bool, device=images.device)


def refuse_invalid(images: Tensor, invalid: Tensor) -> None:
    """ValueError naming the first image for which ``invalid`` [B] is set. Waits for a GPU; not in what is captured."""
    if is_traced(images) or not bool(invalid.any()):
        return
    row = int(invalid.nonzero()[0])
    if bool(images[row].isfinite().all()):
        raise ValueError(f"the encoder gave NaN or infinity for image {row}: expected finite weights")
    raise ValueError(f"images: expected finite numbers; got NaN or infinity in image {row}")
