"""How often a model of the composed set draws what it was asked for: what was shown in training, and what never was.

Both at several guidance scales, beside the pictures themselves and their reconstructions, which no drawing can beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from demo_data import Part
from PIL import Image
from told_right import Features, Fields, References, backgrounds_right, things_right
from torch import Tensor

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.pictures.images import grid, to_pil, with_caption

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
PROMPTS = 256  # of what was shown, and of what was not
CELL = 112  # pixels of a picture on the sheet


@dataclass(frozen=True)
class Rates:
    """Shares of pictures that are right: their backgrounds, and their things."""

    what: str
    background: float
    thing: float


def rates(what: str, pixels: Tensor, asked: Sequence[Fields], references: References) -> Rates:
    backgrounds, things = backgrounds_right(pixels, asked), things_right(pixels, asked, references)
    return Rates(what, float(backgrounds.float().mean()), float(things.float().mean()))


def draw(pipe: HQTVAEPipeline, captions: Sequence[str], scale: float, temperature: float) -> Tensor:
    """uint8 [N, 3, R, R]."""
    how: dict[str, Any] = {"temperature": temperature, "seed": 0, "guidance_scale": scale}
    drawn = pipe(prompt=list(captions), output_type="pt", **how).images
    return (drawn * 255).round().to(torch.uint8)


def measured(
    pipe: HQTVAEPipeline, part: Part, references: References, temperature: float, scales: Sequence[float] = SCALES
) -> list[Rates]:
    """Of the pictures, of their reconstructions, and of what is drawn from their captions at each guidance scale."""
    rebuilt = pipe.decode(pipe.encode(part.floats()), output_type="pt")
    rebuilt = (rebuilt * 255).round().to(torch.uint8)
    found = [rates("the pictures themselves", part.pixels, part.shown, references)]
    found.append(rates("reconstructed", rebuilt, part.shown, references))
    for scale in scales:
        drawn = draw(pipe, part.captions, scale, temperature)
        found.append(rates(f"drawn, guidance {scale:g}", drawn, part.shown, references))
    return found


def best_scale(held_out: Sequence[Rates], scales: Sequence[float] = SCALES) -> float:
    """The guidance scale with most of what was never shown right: things, then backgrounds."""
    drawn = dict(zip(scales, held_out[-len(scales) :], strict=True))
    return max(scales, key=lambda scale: (drawn[scale].thing, drawn[scale].background))


def make_references(parts: Sequence[Part], extract: Features) -> References:
    """Of every single thing in every style, on every background, in both sizes."""
    pixels, shown = torch.cat([part.pixels for part in parts]), [fields for part in parts for fields in part.shown]
    return References.of(pixels, shown, extract)


def as_table(shown: Sequence[Rates], held_out: Sequence[Rates]) -> str:
    """Markdown: backgrounds and things right, of what was shown in training and of what never was."""
    lines = [
        "| | shown: background | shown: thing | never shown: background | never shown: thing |",
        "|---|---|---|---|---|",
    ]
    for known, new in zip(shown, held_out, strict=True):
        values = (known.background, known.thing, new.background, new.thing)
        lines.append(f"| {known.what} | {' | '.join(f'{value:.0%}' for value in values)} |")
    return "\n".join(lines)


def sheet(pipe: HQTVAEPipeline, never: Part, train: Part, scale: float, temperature: float) -> Image.Image:
    """Prompts that were never shown as they are drawn, each above the training picture nearest to it in squared
    error."""
    drawn = draw(pipe, never.captions, scale, temperature)
    cells = [(image, prompt) for image, prompt in zip(_pictures(drawn), never.captions, strict=True)]
    places = [nearest(one, train.pixels) for one in drawn]
    neighbours = _pictures(train.pixels[places])
    cells += [(image, f"trained: {train.captions[i]}") for image, i in zip(neighbours, places, strict=True)]
    return grid([with_caption(image.resize((CELL, CELL)), text) for image, text in cells], columns=len(drawn))


def nearest(image: Tensor, pixels: Tensor, at_a_time: int = 1024) -> int:
    """Of pictures uint8 [N, 3, R, R], the one nearest to a [3, R, R] in squared error."""
    parts = [(part.float() - image.float()).square().mean(dim=(1, 2, 3)) for part in pixels.split(at_a_time)]
    return int(torch.cat(parts).argmin())


def _pictures(pixels: Tensor) -> list[Image.Image]:
    return to_pil(pixels.float() / 255)
