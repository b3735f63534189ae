"""A demo's pictures with their captions, small enough to hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from hqtvae_fast.train.data import CaptionTemplate, PictureDataset, open_source
from hqtvae_fast.train.data import select as select_from

console = Console(stderr=True)

Selection = dict[str, list[str]]


@dataclass(frozen=True)
class Part:
    """Pictures uint8 [N, 3, R, R], the plain caption of each, and what it shows."""

    pixels: Tensor
    captions: list[str]
    shown: list[dict[str, Any]]

    @classmethod
    def read(cls, shard: Path, resolution: int, caption: CaptionTemplate, select: Selection | None = None) -> Part:
        """A shard, or what is selected of it."""
        source = select_from(open_source(str(shard)), select or {})
        dataset = PictureDataset(source, resolution, condition="text", caption=caption, training=False)
        every = range(len(source))
        samples = [dataset[index] for index in track(every, f"reading {shard.name}", console=console)]
        pixels = torch.stack([((sample.image + 1) * 127.5).round().to(torch.uint8) for sample in samples])
        return cls(pixels, [str(sample.caption) for sample in samples], [dict(source.fields(i)) for i in every])

    def some(self, count: int) -> Part:
        """``count`` of them, spread evenly."""
        places = torch.linspace(0, len(self.shown) - 1, min(count, len(self.shown)), dtype=torch.float64)
        kept = places.round().long().tolist()
        return Part(self.pixels[kept], [self.captions[i] for i in kept], [self.shown[i] for i in kept])

    def floats(self) -> Tensor:
        """fp32, [-1, 1]."""
        return self.pixels.float() / 127.5 - 1
