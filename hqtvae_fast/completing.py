"""Completing a picture as a user asks for it: the picture or its codes, and what of it stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hqtvae_fast.codes import read_levels
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.engine import Known
from hqtvae_fast.fields import shown
from hqtvae_fast.pictures.images import open_image, to_tensor

REGIONS = {
    "top-half": lambda y, x: y < 0.5,
    "bottom-half": lambda y, x: y > 0.5,
    "left-half": lambda y, x: x < 0.5,
    "right-half": lambda y, x: x > 0.5,
}
"""What each keeps, of the centres of windows, from 0 to 1."""
WANTED = f"{', '.join(REGIONS)}, booleans [h, w] or [N, h, w], a picture that is white where it stays, or one a level"


@dataclass(frozen=True)
class Completion:
    """``codes`` int64 and ``keep`` bool, [M, h, w] a level, top first."""

    codes: tuple[Tensor, ...]
    keep: tuple[Tensor, ...]

    @property
    def given(self) -> Tensor | None:
        """The top codes, where all of them stay: no top code is drawn then."""
        return self.codes[0] if bool(self.keep[0].all()) else None

    def of(self, spread: Callable[[str, Tensor], Tensor]) -> Known | None:
        """A row an image, by ``spread``; None where nothing stays but given top codes."""
        if self.given is not None and not any(bool(level.any()) for level in self.keep[1:]):
            return None
        codes, keep = ([spread("image", level) for level in maps] for maps in (self.codes, self.keep))
        return Known(codes, keep)


def read_completion(
    config: HQTVAEConfig, image: Any, keep: Any, given_top_codes: Any, encode: Callable[[Any], Sequence[Tensor]]
) -> Completion | None:
    """None where neither is asked for. ``image``: pictures, as ``encode`` takes them, or codes of all levels;
    ``keep``: see :data:`WANTED`; a mask is for windows, the places of top codes, of which those stay that are in it
    whole. ValueError on one without the other, on what does not fit, and where nothing would stay."""
    if image is None and keep is None:
        return None
    if image is None or keep is None:
        name, other = ("image", "keep") if image is None else ("keep", "image")
        raise ValueError(f"{name}: expected {'a picture' if image is None else WANTED}, with {other}; got none")
    if given_top_codes is not None:
        raise ValueError("given_top_codes: expected none with image, which has top codes of its own; got some")
    masks = _read_keep(config, keep)
    codes = _read_codes(config, image) if _is_codes(image) else [level.cpu() for level in encode(image)]
    count = len(codes[0])
    if count == 0 or {len(mask) for mask in masks} - {1, count}:
        got = max(len(mask) for mask in masks)
        raise ValueError(f"keep: expected one mask, or one a picture, of {count} pictures; got {got}")
    stays = tuple(mask.expand(count, -1, -1) for mask in masks)
    if config.transformer is not None and config.transformer.condition == "codes" and not bool(stays[0].all()):
        raise ValueError("keep: expected all of the top level, as this checkpoint draws bottom codes only; got less")
    return Completion(tuple(codes), stays)


def _is_codes(image: Any) -> bool:
    """Whether it is codes and no pictures: a list or tuple of integers a level, which pixels never are."""

    def is_level(value: Any) -> bool:
        array = isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.dtype != np.uint8
        return isinstance(value, Tensor) or array

    return isinstance(image, (list, tuple)) and len(image) > 0 and all(map(is_level, image))


def _read_codes(config: HQTVAEConfig, image: Sequence[Any]) -> list[Tensor]:
    """Of one picture [h, w] a level, or several [N, h, w]."""
    levels = [level[None] if level.ndim == 2 else level for level in image]
    found, _ = read_levels([level.cpu() if isinstance(level, Tensor) else level for level in levels], config.vae)
    return [level for level in found if level is not None]


def _read_keep(config: HQTVAEConfig, keep: Any) -> list[Tensor]:
    """Where codes stay, bool [M, h, w] a level."""
    sides = config.vae.level_sides
    a_level = (bool, np.bool_, str, Tensor, np.ndarray, Image.Image)
    if isinstance(keep, (list, tuple)) and keep and all(isinstance(one, a_level) for one in keep):
        if len(keep) != len(sides):
            raise ValueError(f"keep: expected one mask, or {len(sides)}, one a level; got {len(keep)}")
        masks = [_fitted(_read_mask(config, one), side) for one, side in zip(keep, sides, strict=True)]
    else:
        windows = _fitted(_read_mask(config, keep), sides[0])
        masks = [_fitted(windows, side) for side in sides]
    if not any(bool(mask.any()) for mask in masks):
        raise ValueError(f"keep: expected a mask that keeps a window of {sides[0]}x{sides[0]} or more; got none whole")
    return masks


def _read_mask(config: HQTVAEConfig, keep: Any) -> Tensor:
    """One mask as the user has it, bool [M, a, b]."""
    if isinstance(keep, (bool, np.bool_)):
        return torch.full((1, 1, 1), bool(keep), dtype=torch.bool, device="cpu")
    if isinstance(keep, str) and keep in REGIONS:
        side = config.vae.level_sides[0]
        centres = (torch.arange(side, dtype=torch.float32, device="cpu") + 0.5) / side
        mask = REGIONS[keep](*torch.meshgrid(centres, centres, indexing="ij"))
        return mask[None]
    if isinstance(keep, str) and not os.path.exists(keep):
        raise ValueError(f"keep: expected {WANTED}; got {keep!r}")
    if isinstance(keep, (str, os.PathLike)):
        keep = open_image(os.fspath(keep))
    if isinstance(keep, Image.Image):  # fitted as a picture of its size is
        return to_tensor([keep.convert("RGB")], config.vae.resolution)[:, 0] > 0
    try:
        mask = torch.as_tensor(keep, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"keep: expected {WANTED}; got {shown(keep)}") from None
    if mask.dtype is not torch.bool or mask.ndim not in (2, 3) or mask.numel() == 0:
        raise ValueError(f"keep: expected {WANTED}; got {shown(mask)}")
    return mask if mask.ndim == 3 else mask[None]


def _fitted(mask: Tensor, side: int) -> Tensor:
    """[M, side, side] of a mask that is finer, whose squares stay where all of them does, or coarser."""
    _, height, width = mask.shape
    if height == width and height % side == 0:
        step = height // side
        return mask.unflatten(2, (side, step)).unflatten(1, (side, step)).all(dim=4).all(dim=2)
    if height == width and side % height == 0:
        return mask.repeat_interleave(side // height, dim=1).repeat_interleave(side // height, dim=2)
    raise ValueError(f"keep: expected a mask [{side}, {side}], or of a multiple of that; got {[height, width]}")
