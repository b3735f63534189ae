"""What each level of codes holds: the paper's figures 1, 3 and 4b."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from hqtvae_fast.config import level_names
from hqtvae_fast.evaluate.reconstruction import rounded
from hqtvae_fast.pictures.images import psnr, to_pil, to_tensor
from hqtvae_fast.pictures.sheet import GREEN, RED, Cell, Row, Sheet
from hqtvae_fast.pipeline import HQTVAEPipeline


def level_rows(pipe: HQTVAEPipeline, codes: Sequence[Tensor], captions: Sequence[str] = ()) -> Image.Image:
    """Figure 1: pictures of codes [N, h, w] a level, each level decoded alone, top first, then all of them."""
    count = len(codes)
    named = enumerate(level_names(count))
    rows = [Row(f"{name}\nonly", _cells(pipe.decode(alone(codes, level)))) for level, name in named]
    both = "both" if count == 2 else "all"
    return Sheet([*rows, Row(f"{both}\nlevels", _cells(pipe.decode(codes)))], captions).draw()


def resampling_rows(pipes: Mapping[str, HQTVAEPipeline], images: Sequence[Image.Image]) -> Image.Image:
    """Figure 3: pictures, and for each model (by name) what its top codes alone, and all its codes, give of them.

    Names carry the mean PSNR in dB, of reconstructions rounded to 8 bits against the fitted pictures.
    """
    resolutions = {pipe.config.vae.resolution for pipe in pipes.values()}
    if len(resolutions) != 1:
        raise ValueError(f"expected models of one resolution; got {sorted(resolutions)}")
    pixels = to_tensor(images, resolutions.pop())
    rows = [Row("pictures", _cells(to_pil(pixels * 0.5 + 0.5)))]
    for name, pipe in pipes.items():
        codes = pipe.encode(pixels)
        for what, kept in (("top only", alone(codes, 0)), ("all codes", codes)):
            rebuilt = pipe.decode(kept, "pt")
            decibels = float(psnr(rounded(rebuilt).float() / 255, pixels * 0.5 + 0.5).mean())
            rows.append(Row(f"{name}\n{what}\n{decibels:.1f} dB", _cells(to_pil(rebuilt)), apart=what == "top only"))
    return Sheet(rows).draw()


def redraw_rows(
    pipe: HQTVAEPipeline,
    codes: Sequence[Tensor],
    condition: Mapping[str, Any],
    sampling: Mapping[str, Any],
    draws: int,
    seed: int,
    caption: str = "",
) -> Image.Image:
    """Figure 4b: one picture's top codes kept, the others drawn ``draws`` times.

    ``codes``: the picture's, [1, h, w] a level. ``condition``: class_labels or prompt, as the pipeline takes them. On
    the left the top codes alone (red) and the picture itself (green); then for each draw the finer codes alone, and the
    picture that they make with the same top codes. ``caption``: what the picture shows, in words.
    """
    settings = {**condition, **sampling, "num_images": draws, "seed": seed}
    drawn = pipe(**settings, given_top_codes=codes[0], output_type="codes", progress=False).codes
    finer = pipe.decode([None, *drawn[1:]])
    top, own = pipe.decode(alone(codes, 0))[0], pipe.decode(codes)[0]
    headings = ["kept", *(f"draw {number + 1}" for number in range(draws))]
    rows = [
        Row("top (kept),\nfiner codes\n(drawn) alone", [Cell(top, frame=RED), *_cells(finer)]),
        Row("all codes", [Cell(own, caption, GREEN), *_cells(pipe.decode(drawn))]),
    ]
    return Sheet(rows, headings, frozenset({1})).draw()


def alone(codes: Sequence[Tensor], level: int) -> list[Tensor | None]:
    """All levels but one left out."""
    return [own if index == level else None for index, own in enumerate(codes)]


def _cells(images: Sequence[Image.Image]) -> list[Cell]:
    return [Cell(image) for image in images]
