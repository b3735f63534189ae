"""The demo model's card, with the figures that package_demo.py has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.train.data import open_source, select

DEMO = Path(__file__).parent / "demo"
TEMPLATE, NOTES = "card.md", "notes.txt"  # of a size
HISTORY = "training.json"
RUNS = {"vae": "HQ-VAE", "hqt": "HQ-Transformer", "fine": "fine-tuning"}  # by folder, in the order of training

Run = dict[str, Any]
"""What the card tells of a run: its name, pictures, updates, batch, and losses at the end."""


def history(work: Path) -> list[Run]:
    """The runs under ``work``, after those of the packaged model that the first of them began with."""
    folders = [name for name in RUNS if (work / name / "model").is_dir()]
    if not folders:
        raise ValueError(f"{work}: expected a finished run in one of {', '.join(RUNS)}; found none")
    settings = {name: json.loads((work / name / "run.json").read_text()) for name in folders}
    runs = [_told(name, settings[name], work / name / "losses.jsonl") for name in folders]
    init = settings[folders[0]]["init"]
    return runs if init is None else [*json.loads((Path(init) / HISTORY).read_text()), *runs]


def write_card(
    out: Path,
    config: HQTVAEConfig,
    runs: list[Run],
    temperature: float,
    figures: dict[str, Any],
    neighbours: list[tuple[str, str, float]],
) -> None:
    """``README.md`` in ``out``, and ``training.json``."""
    (out / HISTORY).write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    parts = checkpoints.load(out).modules()
    size = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    folder = DEMO / str(config.vae.resolution)
    notes = folder / NOTES  # what a run did that its files do not say
    told = f"\n\n{notes.read_text(encoding='utf-8').strip()}" if notes.is_file() else ""
    template = (folder / TEMPLATE).read_text(encoding="utf-8")
    text = template.format(
        resolution=config.vae.resolution,
        size=config.vae.resolution,
        temperature=temperature,
        sides=" + ".join(f"{side}x{side}" for side in config.vae.level_sides),
        codebooks=" + ".join(f"{count:,}" for count in config.vae.codebook_sizes),
        vae_parameters=size["vae"],
        hqt_parameters=size["transformer"],
        runs="\n".join(_row(run) for run in runs),
        recipe=f"Stage 1 was trained on {runs[0]['losses']} alone.{told}",
        curves="\n".join(f"![Losses]({file.name})" for file in sorted(out.glob("losses*.png"), reverse=True)),
        neighbours="\n".join(f"| {prompt} | {caption} | {value:.1f} |" for prompt, caption, value in neighbours),
        **figures,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _told(name: str, settings: dict[str, Any], log: Path) -> Run:
    source = select(open_source(settings["data"]), settings["select"])
    end, updates = _end(log)
    kept = ("psnr",) if name == "vae" else ("level_0", "level_1")
    run = {"run": RUNS[name], "pictures": len(source), "updates": updates, "batch": settings["batch_size"]}
    if name == "vae":
        adversarial, perceptual = settings["adversarial"] > 0, settings["perceptual_weights"] is not None
        named = ["squared error", *["a perceptual loss"] * perceptual, *["a discriminator"] * adversarial]
        run["losses"] = " and ".join(named)
    return {**run, "end": {key: round(end[key], 3) for key in kept}}


def _row(run: Run) -> str:
    end = run["end"]
    if "psnr" in end:
        reached = f"PSNR {end['psnr']:.1f} dB"
    else:
        reached = f"top {end['level_0']:.2f}, bottom {end['level_1']:.2f} nats a code"
    return f"| {run['run']} | {run['pictures']:,} | {run['updates']:,} x {run['batch']} | {reached} |"


def _end(file: Path, share: float = 0.02) -> tuple[dict[str, float], int]:
    """Means over the last rows of a log, and its last update."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tail = rows[-max(1, int(len(rows) * share)) :]
    names = set.intersection(*(set(row) for row in tail))
    return {name: sum(row[name] for row in tail) / len(tail) for name in names}, int(rows[-1]["step"])
