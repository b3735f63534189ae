"""What ``hqtvae sample`` draws, on the way to its files."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import typer
from PIL import Image
from torch import Tensor

from hqtvae_fast.cli.codes import leave_out, write_codes
from hqtvae_fast.cli.output import count, rate
from hqtvae_fast.cli.plan import Drawing, arguments
from hqtvae_fast.cli.reject import Rejection
from hqtvae_fast.cli.sheets import PictureWriter
from hqtvae_fast.output import OutputType
from hqtvae_fast.pipeline import HQTVAEPipeline


def draw_all(
    pipe: HQTVAEPipeline,
    drawings: Sequence[Drawing],
    sampling: dict[str, Any],
    keep: int | None,
    writer: PictureWriter,
    batch: int,
    save_codes: Path | None,
    rejection: Rejection | None,
) -> tuple[list[Drawing], list[tuple[Tensor, ...]]]:
    """Hand each picture to the writer as soon as it is there; returns those that were kept and their codes. Stopped by
    the user, it writes what is there."""
    started, kept, codes = time.perf_counter(), list[Drawing](), list[tuple[Tensor, ...]]()
    try:
        wanted = writer.wants_pictures or rejection is not None
        with closing(_drawn(pipe, drawings, sampling, keep, batch, wanted)) as images:
            drawn = zip(drawings, images, strict=True)
            for drawing, (image, own) in drawn if rejection is None else rejection.choose(drawn):
                kept.append(drawing)
                codes.append(own)
                if image is not None:
                    writer.add(image, drawing.name, drawing.about(), drawing.caption())
    except KeyboardInterrupt:
        if codes:
            writer.finish()
            save_drawn(save_codes, kept, codes)
        raise
    typer.echo(rate(len(drawings), "image", time.perf_counter() - started))
    if rejection is not None:
        rejection.report()
    return kept, codes


def _drawn(
    pipe: HQTVAEPipeline,
    drawings: Sequence[Drawing],
    sampling: dict[str, Any],
    keep: int | None,
    batch: int,
    wanted: bool,
) -> Generator[tuple[Image.Image | None, tuple[Tensor, ...]], None, None]:
    """Each picture, if it is wanted, and its codes, all levels."""
    output_type: OutputType = "pil" if wanted and keep is None else "codes"
    stream = pipe.stream(**arguments(drawings), **sampling, batch_size=batch, output_type=output_type, progress=True)  # type: ignore[arg-type]
    levels = pipe.config.vae.num_levels
    with closing(stream):
        for drawn in stream:
            if not wanted or keep is None:
                yield drawn.image, drawn.codes
            else:
                alone = leave_out(tuple(level[None] for level in drawn.codes), levels, keep)
                yield pipe.decode(alone)[0], drawn.codes


def save_drawn(file: Path | None, drawings: Sequence[Drawing], codes: Sequence[tuple[Tensor, ...]]) -> None:
    if file is None:
        return
    levels = tuple(torch.stack(level) for level in zip(*codes, strict=True))
    write_codes(file, levels, [drawing.name for drawing in drawings])
    typer.echo(f"wrote {file} (codes of {count(len(drawings), 'picture')}, {len(levels)} levels)")
