"""``hqtvae sample --shards``: a large set of pictures, by one process or by all that torchrun has started."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from hqtvae_fast.cli.asked import Machine, Wanted
from hqtvae_fast.cli.checks import check_drawing
from hqtvae_fast.cli.options import batch_of
from hqtvae_fast.cli.output import count, progress, rate, waiting
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.distributed import SampleShards, SampleSpec, Team, join_team
from hqtvae_fast.distributed.subjects import make_subjects

LINE_SECONDS = 30.0  # between two lines about a job whose stderr is no terminal


def sample_set(
    machine: Machine, config: HQTVAEConfig, folder: Path, wanted: Wanted, *, shard_size: int, batch_size: int | None
) -> None:
    """Draw the shards that are missing; the leading process says how many pictures that were, and how fast."""
    subjects = make_subjects(config, wanted.labels, wanted.prompts, wanted.num_images)
    check_drawing(config, subjects.examples(), wanted.sampling)
    with join_team() as team:
        pipe = machine.open(team.device(machine.device))
        how: dict[str, Any] = {"batch_size": batch_of(pipe, batch_size), "shard_size": shard_size}
        how["quantization"] = machine.quantization
        shards = SampleShards(folder, pipe, SampleSpec(subjects, seed=wanted.seed, **wanted.sampling, **how))
        draw_together(team, shards)


def draw_together(team: Team, shards: SampleShards) -> None:
    """One process's part in a job; all of them return when every shard is there."""
    with waiting("Hashing the weights"):
        own = shards.described()
    wanted, missing = team.share(lambda: (own, shards.open(own)))
    if wanted != own:
        raise ValueError(f"process {team.rank}: expected the set that process 0 draws, {wanted}; got {own}")
    total = sum(len(shards.span(shard)) for shard in missing)
    if team.leads and len(missing) < len(shards):
        there = len(shards) - len(missing)
        typer.echo(f"{shards.folder}: {there:,} of {count(len(shards), 'shard')} are there already")
    started = time.perf_counter()
    with _job_progress(total, shown=team.leads) as show:
        shards.make(team.take(missing), advance=lambda number: show(team.report(number)))
        team.finish(waiting=lambda: show(team.report(0)))
    if not team.leads:
        return
    manifest = shards.close(own)
    if total:
        processes = f" ({team.world} processes)" if team.world > 1 else ""
        typer.echo(f"{rate(total, 'image', time.perf_counter() - started)}{processes}")
    pictures = count(shards.spec.subjects.total, "picture")
    typer.echo(f"wrote {shards.folder} ({count(len(shards), 'shard')}, {pictures}; checksums in {manifest.name})")


@contextmanager
def _job_progress(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yields what takes the number of pictures that all processes have drawn: a bar on a terminal, else a line now and
    then."""
    if not shown or total == 0:
        yield lambda done: None
        return
    on_terminal = Console(stderr=True).is_terminal
    began = time.perf_counter()
    before, due = 0, LINE_SECONDS
    with progress("Drawing", total) as advance:

        def show(done: int) -> None:
            nonlocal before, due
            advance(done - before)
            before, passed = done, time.perf_counter() - began
            if not on_terminal and passed >= due and done:
                due = passed + LINE_SECONDS
                speed = f"{done / passed:.2f} a second, {(total - done) * passed / done:,.0f} s left"
                typer.echo(f"{done:,} of {count(total, 'image')}, {speed}", err=True)

        yield show
