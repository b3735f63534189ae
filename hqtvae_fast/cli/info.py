"""``hqtvae info``: what a model is made of, what it costs, and how fast it could be."""

from __future__ import annotations

from typing import Annotated

import typer

from hqtvae_fast.cli.checks import config_of
from hqtvae_fast.cli.options import Precision
from hqtvae_fast.cli.output import waiting
from hqtvae_fast.config import PRESETS, preset

DEFAULT_BATCHES = [1, 50]

InfoCheckpoint = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A checkpoint, whose weights are read and checked too; without one, name a --preset.",
        show_default=False,
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help=f"One of the paper's models: {', '.join(PRESETS)}."),
]
Batch = Annotated[
    list[int], typer.Option("--batch", min=1, help="Images at a time, for memory and time floors. May be repeated.")
]
ComputeIn = Annotated[
    Precision,
    typer.Option("--dtype", help="What weights, caches and pixels are held in, for memory and time floors."),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure", help="Measure this machine's arithmetic and bandwidth: 2 seconds, 0.6 to 2 GB."
    ),
]


def info(
    checkpoint: InfoCheckpoint = None,
    preset_name: PresetName = None,
    batch: Batch = DEFAULT_BATCHES,
    dtype: ComputeIn = Precision.bf16,
    measure: Measure = True,
) -> None:
    """Show a model's configuration, parameters, FLOPs, memory and least possible times, and this machine."""
    if checkpoint is not None and preset_name is not None:
        raise ValueError("CHECKPOINT and --preset: expected at most one of them")
    config = None if preset_name is None else preset(preset_name)
    if checkpoint is not None:
        config = config_of(checkpoint)
    with waiting("Starting" if checkpoint is None else f"Opening {checkpoint}"):
        from hqtvae_fast import checkpoint as checkpoints
        from hqtvae_fast.cli.model_facts import show_classes, show_costs, show_machine, show_stored, show_summary

        opened = None if checkpoint is None else checkpoints.load(checkpoint)
    if config is not None:
        show_summary(checkpoint or f"preset {preset_name}", config, opened)
    show_machine()
    if opened is not None:
        show_stored(opened)
    if config is None:
        typer.echo(f"Name a CHECKPOINT or a --preset ({', '.join(PRESETS)}) to see what it costs.")
        return
    show_classes(config.classes)
    show_costs(config, batch, dtype.value, measure)
