"""Make and measure the demo-size ablations of the paper's tables 4, 5 and 6, with ``hqtvae train``.

    python tools/ablations.py train --data shards/ --work runs/ablations
    python tools/ablations.py report --data shards/ --work runs/ablations --out benchmarks/studies/ablations.json

``train`` makes the runs that are not done yet, one after the other, and may be stopped and started at will. ``report``
measures those that are done, on the held-out pictures, and writes JSON and, beside it, a Markdown table. The data is
what tools/build_emoji.py makes.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from ablation_runs import RUNS, VAE, Run  # beside this file
from rich.console import Console

TRAIN, HELD_OUT = "emoji-128-train.tar", "emoji-128-val.tar"
SECONDS, FIGURES = "seconds.json", "figures.json"
console = Console(stderr=True)
app = typer.Typer(help=__doc__, no_args_is_help=True)

Data = Annotated[Path, typer.Option("--data", help=f"Folder with {TRAIN} and {HELD_OUT}.")]
Work = Annotated[Path, typer.Option("--work", help="Folder of the runs.")]
Out = Annotated[Path, typer.Option("--out", help="File of the figures, JSON; a table goes beside it.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only this run. May be repeated.")]


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
    known = read_json(work / SECONDS)
    write_json(work / SECONDS, {**known, run.name: known.get(run.name, 0.0) + seconds})


def read_json(file: Path) -> dict[str, Any]:
    """Empty if there is no such file."""
    return json.loads(file.read_text()) if file.is_file() else {}


def write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@app.command()
def report(data: Data, work: Work, out: Out) -> None:
    """Measure the runs that are done, and write OUT (JSON) and a table beside it (Markdown)."""
    from ablation_measure import open_run, reference
    from ablation_table import markdown

    from hqtvae_fast.evaluate import open_extractor, open_pictures

    extractor = open_extractor("efficientnet-lite0", "cpu")
    held_out = open_pictures(data / HELD_OUT, VAE["resolution"])
    against = None
    for run in RUNS:
        if run.half or not is_done(run, work) or (work / run.name / FIGURES).is_file():
            continue
        pipe = open_run(work / run.name)
        if run.stage == "stage2" and against is None:
            against = reference(open_pictures(data / TRAIN, VAE["resolution"]), extractor)
        write_json(work / run.name / FIGURES, figures(run, pipe, held_out, extractor, against, work / run.name))
        console.print(f"{run.name}: measured")
    results = collected(work)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, results)
    out.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    console.print(f"wrote {out} and {out.with_suffix('.md').name}")


def figures(run: Run, pipe: Any, held_out: Any, extractor: Any, against: Any, folder: Path) -> dict[str, Any]:
    """What is measured of a run."""
    from ablation_measure import label_perplexity, nats, sampled, stage1_figures

    if run.stage == "stage1":
        return stage1_figures(pipe, held_out, extractor)
    made: dict[str, Any] = {"nats": nats(pipe, held_out)}
    if run.config()["soft_labels"]:
        made["label_perplexity"] = label_perplexity(pipe, held_out)
    return {**made, "frechet": sampled(pipe, extractor, against, folder / "samples.png")}


def collected(work: Path) -> dict[str, Any]:
    """All that is known of the runs, in their order; a run that is not done is listed without figures."""
    seconds = read_json(work / SECONDS)
    rows = []
    for run in RUNS:
        config, known = run.config(), read_json(work / run.name / FIGURES)
        own = {"name": run.name, "row": run.row, "stage": run.stage, "vae": run.vae, "half": run.half}
        own |= {"updates": config["steps"], "batch_size": config["batch_size"], "model": config["model"]}
        rows.append({**own, "seconds": seconds.get(run.name), "figures": known})
    machine = {"torch": torch.__version__, "processor": processor(), "threads": torch.get_num_threads()}
    return {"format": "hqtvae_fast ablations, version 1", "machine": machine, "runs": rows}


def processor() -> str:
    """What the system calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    app()
