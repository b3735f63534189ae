"""``hqtvae pack``: pictures in the form that an evaluator reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from hqtvae_fast.cli.output import check_folder, count, progress, rate, say_errors

BAD_INPUT = 2

Source = Annotated[
    list[str],
    typer.Argument(
        metavar="PICTURES...",
        help="A folder, shards (a file, a pattern, a folder of them), or an .npz.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option("--out", metavar="PATH", help="FILE.npz (ADM's format), FILE.tar (a WebDataset) or a new folder."),
]
Resolution = Annotated[
    int | None,
    typer.Option("--resolution", metavar="R", min=1, help="Fit to this side.", show_default="the first picture's"),
]
Caption = Annotated[
    str, typer.Option("--caption", metavar="TEMPLATE", help="Captions: plain, emoji, or fields in braces.")
]
Workers = Annotated[int, typer.Option("--workers", metavar="N", min=0, help="Processes that read ahead.")]


def pack(
    pictures: Source, out: Out, resolution: Resolution = None, caption: Caption = "plain", workers: Workers = 0
) -> None:
    """Write a set of pictures as one .npz, one shard or a folder, so that other evaluators can read it."""
    from hqtvae_fast.evaluate import open_pictures
    from hqtvae_fast.evaluate.pack import pack as write
    from hqtvae_fast.train.data import caption_template

    check_folder(out.parent)
    source = open_pictures(pictures, resolution, caption_template(caption))
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with progress("Packing", len(source)) as advance:
        broken = write(source, out, advance, workers)
    written = len(source) - len(broken)
    typer.echo(rate(written, "picture", time.perf_counter() - started))
    typer.echo(f"wrote {out} ({count(written, 'picture')} of {source.resolution} pixels)")
    say_errors(broken)
    if broken:
        raise typer.Exit(BAD_INPUT)
