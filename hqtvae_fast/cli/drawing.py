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

from hqtvae_fast.cli.asked import Files, Judged, Machine, Wanted
from hqtvae_fast.cli.checks import check_drawing
from hqtvae_fast.cli.codes import leave_out, read_codes, write_codes
from hqtvae_fast.cli.drawings import Drawing, arguments, plan
from hqtvae_fast.cli.options import batch_of
from hqtvae_fast.cli.output import count, rate
from hqtvae_fast.cli.reject import Rejection, open_rejection
from hqtvae_fast.cli.sheets import PictureWriter
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.output import OutputType
from hqtvae_fast.pipeline import HQTVAEPipeline

MAX_ROW = 16  # of a condition's pictures, by default


def draw(
    machine: Machine, config: HQTVAEConfig, wanted: Wanted, judged: Judged, files: Files, batch_size: int | None
) -> None:
    """Check all of it, open the model, draw, write."""
    given = None if wanted.given_top is None else read_codes(wanted.given_top, config.vae)

    def planned(of_each: int) -> list[Drawing]:
        return plan(wanted.labels, wanted.prompts, given, of_each, wanted.seed, config.classes)

    check_drawing(config, arguments(planned(1)), wanted.sampling)
    rejection = open_rejection(judged, wanted.num_images, machine.device)
    drawings = planned(wanted.num_images if rejection is None else rejection.drawn)
    if rejection is not None:
        rejection.check(drawings, wanted.keep)
    columns = files.columns
    if columns is None and 1 < wanted.num_images <= MAX_ROW and len(drawings) > len(planned(1)) > 1:
        columns = wanted.num_images  # a row for each subject
    writer = PictureWriter(
        files.sheet, files.folder, columns, scale=files.scale, captions=files.captions, kind=files.kind
    )
    pipe = machine.open(machine.device)
    if given is not None:
        given.check_vae(pipe.vae)
    _draw_all(pipe, drawings, wanted, writer, batch_of(pipe, batch_size), files.codes, rejection)


def _draw_all(
    pipe: HQTVAEPipeline,
    drawings: Sequence[Drawing],
    wanted: Wanted,
    writer: PictureWriter,
    batch: int,
    save_codes: Path | None,
    rejection: Rejection | None,
) -> None:
    """Hand each picture to the writer as soon as it is there, then write codes and sheet. Stopped by the user, it
    writes what is there."""
    started, kept, codes = time.perf_counter(), list[Drawing](), list[tuple[Tensor, ...]]()
    try:
        shown = writer.wants_pictures or rejection is not None
        with closing(_drawn(pipe, drawings, wanted, batch, shown)) as images:
            drawn = zip(drawings, images, strict=True)
            for drawing, (image, own) in drawn if rejection is None else rejection.choose(drawn, batch):
                kept.append(drawing)
                codes.append(own)
                if image is not None:
                    writer.add(image, drawing.name, drawing.about(pipe.plan.id), drawing.caption())
    except KeyboardInterrupt:
        if codes:
            _write(writer, save_codes, kept, codes, pipe.plan.id)
        raise
    seconds = time.perf_counter() - started
    _write(writer, save_codes, kept, codes, pipe.plan.id)
    typer.echo(rate(len(drawings), "image", seconds))
    if rejection is not None:
        rejection.report()


def _write(
    writer: PictureWriter,
    save_codes: Path | None,
    drawings: Sequence[Drawing],
    codes: Sequence[tuple[Tensor, ...]],
    plan: str,
) -> None:
    """All files; one that cannot be written does not cost the others."""
    try:
        _save_codes(save_codes, drawings, codes, plan)
    finally:
        writer.finish()


def _drawn(
    pipe: HQTVAEPipeline,
    drawings: Sequence[Drawing],
    wanted: Wanted,
    batch: int,
    shown: bool,
) -> Generator[tuple[Image.Image | None, tuple[Tensor, ...]], None, None]:
    """Each picture, if it is shown, and its codes, all levels."""
    output_type: OutputType = "pil" if shown and wanted.keep is None else "codes"
    how: dict[str, Any] = {"batch_size": batch, "output_type": output_type, "progress": True}
    stream = pipe.stream(**arguments(drawings), **wanted.sampling, **how)
    levels = pipe.config.vae.num_levels
    with closing(stream):
        for drawn in stream:
            if not shown or wanted.keep is None:
                yield drawn.image, drawn.codes
            else:
                alone = leave_out(tuple(level[None] for level in drawn.codes), levels, wanted.keep)
                yield pipe.decode(alone)[0], drawn.codes


def _save_codes(file: Path | None, drawings: Sequence[Drawing], codes: Sequence[tuple[Tensor, ...]], plan: str) -> None:
    if file is None:
        return
    levels = tuple(torch.stack(level) for level in zip(*codes, strict=True))
    write_codes(file, levels, [drawing.name for drawing in drawings], plan)
    typer.echo(f"wrote {file} (codes of {count(len(drawings), 'picture')}, {len(levels)} levels)")
