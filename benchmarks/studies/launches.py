"""Kernels that a decode step launches on a GPU, by operator: the model's own modules, and the fused step.

python -m benchmarks.studies.launches --preset S --batch 64

Counted on fake tensors, so no GPU is needed; :mod:`hqtvae_fast.tune.launches` says what is counted and what is not.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from hqtvae_fast.config import PRESETS, preset
from hqtvae_fast.tune.launches import count_launches, launches_a_block


def launches(
    preset_name: Annotated[str, typer.Option("--preset", help=f"One of {', '.join(PRESETS)}.")] = "S",
    batch: Annotated[int, typer.Option(min=1, help="Images drawn at once; up to 16 rows, products are our own.")] = 64,
) -> None:
    """Count the kernels that a decode step launches on a GPU, before and after fusion."""
    config = preset(preset_name).transformer
    assert config is not None
    before, after = (count_launches(config, engine, batch=batch) for engine in ("reference", "fused"))
    table = Table("operator", "before", "after", box=box.SIMPLE)
    for name in sorted({*before, *after}, key=lambda name: (-before[name], -after[name], name)):
        table.add_row(name, str(before[name] or "-"), str(after[name] or "-"))
    table.add_section()
    table.add_row("a step", str(sum(before.values())), str(sum(after.values())))
    rows = (launches_a_block(config, engine, batch=batch) for engine in ("reference", "fused"))
    plain, fused = rows
    table.add_row("a block of the body", str(plain["body"]), str(fused["body"]))
    passes = len(config.groups)
    table.add_row(f"a block of the head, {passes} passes", str(plain["head"]), str(fused["head"]))
    console = Console(highlight=False)
    console.print(
        f"Kernels of a step, preset {preset_name}, batch {batch} (before: the modules, at least; after: fused)"
    )
    console.print(table)


if __name__ == "__main__":
    sys.exit(typer.run(launches))
