"""Make and measure the demo-size ablations of the paper's tables 4, 5 and 6, with ``hqtvae train``.

    python tools/ablations.py train --data shards/ --work runs/ablations
    python tools/ablations.py report --data shards/ --work runs/ablations --out benchmarks/results/ablations.json

``train`` makes the runs that are not done yet, one after the other, and may be stopped and started at will. ``report``
measures those that are done, on the held-out pictures, and writes JSON and, beside it, a Markdown table. The data is
what tools/build_emoji.py makes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
import yaml
from ablation_runs import RUNS, Run  # beside this file
from rich.console import Console

TRAIN, HELD_OUT = "emoji-128-train.tar", "emoji-128-val.tar"
SECONDS = "seconds.json"
console = Console(stderr=True)
app = typer.Typer(help=__doc__, no_args_is_help=True)

Data = Annotated[Path, typer.Option("--data", help=f"Folder with {TRAIN} and {HELD_OUT}.")]
Work = Annotated[Path, typer.Option("--work", help="Folder of the runs.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only this run. May be repeated.")]


@app.callback()
def main() -> None:
    """Ablations at the demo's size."""


@app.command()
def train(data: Data, work: Work, only: Only = None) -> None:
    """Make the runs that are not done yet."""
    for run in chosen(only):
        if is_done(run, work):
            console.print(f"{run.name}: done")
            continue
        began = time.monotonic()
        status = subprocess.run(command(run, data, work)).returncode
        add_seconds(run, work, time.monotonic() - began)
        if status or not is_done(run, work):
            console.print(f"{run.name}: ended with status {status}; give the command again to go on")
            raise typer.Exit(status or 1)


def chosen(only: list[str] | None) -> list[Run]:
    """The runs of these names, all if there are none; BadParameter on a name that no run has."""
    names = [run.name for run in RUNS]
    if unknown := sorted(set(only or ()) - set(names)):
        raise typer.BadParameter(f"expected some of {', '.join(names)}; got {', '.join(unknown)}", param_hint="--only")
    return [run for run in RUNS if not only or run.name in only]


def is_done(run: Run, work: Path) -> bool:
    return (work / run.name / "model" / "config.json").is_file()


def command(run: Run, data: Path, work: Path) -> list[str]:
    """Writes the run's YAML file; returns the ``hqtvae train`` that makes, or goes on with, the run."""
    fields = {
        **run.config(),
        "data": [str(data / TRAIN)],
        "validation": [str(data / HELD_OUT)],
        "out": str(work / run.name),
    }
    if run.vae is not None:
        fields["vae"] = str(work / run.vae / "model")
        kind = "latents" if fields["soft_labels"] else "codes"
        fields["code_cache"] = str(work / f"{kind}-{run.vae}.safetensors")
    if run.prior is not None:
        fields["prior"] = str(work / run.prior / "model")
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"{run.name}.yaml"
    file.write_text(yaml.safe_dump(fields, sort_keys=False))
    return [sys.executable, "-m", "hqtvae_fast.cli", "train", run.stage, str(file)]


def add_seconds(run: Run, work: Path, seconds: float) -> None:
    """A run's time, over all the pieces that it was made in."""
    file = work / SECONDS
    known = json.loads(file.read_text()) if file.is_file() else {}
    known[run.name] = known.get(run.name, 0.0) + seconds
    file.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    app()
