"""``hqtvae encode --shards``: a whole set of pictures into shards of codes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from hqtvae_fast.cli.options import batch_of, open_pipeline
from hqtvae_fast.cli.output import count, progress, rate, waiting

BAD_INPUT = 2


def encode_set(
    checkpoint: str,
    images: Sequence[Path],
    folder: Path,
    shard_size: int,
    workers: int,
    batch_size: int | None,
    device: str | None,
    how: dict[str, Any],
) -> None:
    """Make the shards that are missing, and say how many pictures that were, how fast, and how many were broken.
    ``how``: the pipeline's plan."""
    with waiting("Starting"):
        from hqtvae_fast.train.codes.shards import CodeShards
        from hqtvae_fast.train.data import open_source

    source = open_source(list(images))
    pipe = open_pipeline(checkpoint, device, None, **how)
    with waiting("Hashing the weights"):
        shards = CodeShards(folder, source, pipe.vae, shard_size, checkpoint=checkpoint, plan=pipe.plan)
    if done := shards.done():
        typer.echo(f"{folder}: {len(done):,} of {count(len(shards), 'shard')} are there already")
    started = time.perf_counter()
    with progress("Encoding", len(source)) as advance:
        made = shards.make(batch_of(pipe, batch_size), workers=workers, advance=advance)
    seconds = time.perf_counter() - started
    if made.encoded:
        typer.echo(rate(made.encoded, "image", seconds))
    typer.echo(f"wrote {folder} ({count(len(shards), 'shard')}, codes of {count(made.encoded + made.kept, 'picture')})")
    if made.broken:
        typer.echo(f"note: {count(made.broken, 'picture')} could not be read: see {folder}/*.broken.json", err=True)
    if made.broken == len(source):
        raise typer.Exit(BAD_INPUT)
