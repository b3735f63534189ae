"""Whether drawn compositions show what was asked for: the background's colour, and the things.

A background is right where nine in ten pixels of the border are nearer to its colour than to any other named one. A
thing is right where, among the references of all things in all styles on the same background and of the same size, the
one whose features are nearest is of this thing. Two things are right if each is, in its half. What is small is compared
by the square around it, as the rest is background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from emoji_set.things import COLOURS
from torch import Tensor

BORDER = 2  # pixels
ENOUGH = 0.9  # of the border's pixels

Fields = dict[str, Any]
"""Of a composition, as its shard has them: things, background, size, held_out."""
Features = Callable[[Tensor], Tensor]
"""uint8 [N, 3, R, R] to [N, d]."""


def backgrounds_right(pixels: Tensor, asked: Sequence[Fields]) -> Tensor:
    """Of each picture, uint8 [N, 3, R, R], as bool [N]."""
    palette_C3 = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=pixels.device)
    wanted = torch.tensor([list(COLOURS).index(fields["background"]) for fields in asked], device=pixels.device)
    frame = torch.ones(pixels.shape[-2:], dtype=torch.bool, device=pixels.device)
    frame[BORDER:-BORDER, BORDER:-BORDER] = False
    border_NP3 = pixels[:, :, frame].permute(0, 2, 1).float()
    nearest_NP = torch.cdist(border_NP3, palette_C3).argmin(dim=2)
    return (nearest_NP == wanted[:, None]).float().mean(dim=1) >= ENOUGH


@dataclass(frozen=True)
class References:
    """Features [M, d], of unit length, of pictures of one thing, and what each shows."""

    features: Tensor
    shown: list[Fields]
    extract: Features

    @classmethod
    def of(cls, pixels: Tensor, shown: Sequence[Fields], extract: Features) -> References:
        single = [index for index, fields in enumerate(shown) if fields["size"] != "pair"]
        kept = [shown[index] for index in single]
        return cls(_features([_windows(pixels[i], shown[i])[0] for i in single], extract), kept, extract)

    def nearest(self, pixels: Tensor, asked: Fields) -> list[str]:
        """The thing nearest to each that is asked for, in a picture uint8 [3, R, R]."""
        size = "large" if asked["size"] == "large" else "small"
        among = [
            index
            for index, fields in enumerate(self.shown)
            if fields["size"] == size and fields["background"] == asked["background"]
        ]
        if not among:
            raise ValueError(f"references: expected some on {asked['background']}, {size}; got none")
        closeness = _features(_windows(pixels, asked), self.extract) @ self.features[among].T
        return [self.shown[among[index]]["things"][0] for index in closeness.argmax(dim=1).tolist()]


def things_right(pixels: Tensor, asked: Sequence[Fields], references: References) -> Tensor:
    """Of each picture, uint8 [N, 3, R, R], as bool [N]."""
    right = [
        references.nearest(one, fields) == list(fields["things"]) for one, fields in zip(pixels, asked, strict=True)
    ]
    return torch.tensor(right, dtype=torch.bool, device="cpu")


def _windows(pixels: Tensor, fields: Fields) -> list[Tensor]:
    """The squares of a picture [3, R, R] that its things lie in."""
    if fields["size"] == "large":
        return [pixels]
    side, half = pixels.shape[-1], pixels.shape[-1] // 2
    rows = slice(half // 2, half // 2 + half)
    starts = [half // 2] if fields["size"] == "small" else [0, side - half]
    return [pixels[:, rows, start : start + half] for start in starts]


def _features(windows: Sequence[Tensor], extract: Features, batch: int = 64) -> Tensor:
    """[N, d] of unit length; windows differ in size."""
    parts = []
    for size in sorted({window.shape[-1] for window in windows}):
        places = [index for index, window in enumerate(windows) if window.shape[-1] == size]
        stacked = torch.stack([windows[index] for index in places])
        parts += list(zip(places, torch.cat([extract(part) for part in stacked.split(batch)]), strict=True))
    return F.normalize(torch.stack([value for _, value in sorted(parts, key=lambda part: part[0])]), dim=1)
