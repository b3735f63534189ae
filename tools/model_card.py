"""The demo model's card, with the figures that package_demo.py has measured."""

from __future__ import annotations

import json
from pathlib import Path

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.config import HQTVAEConfig

DEMO = Path(__file__).parent / "demo"
TEMPLATE, NOTES = DEMO / "card.md", "notes.txt"


def write_card(
    out: Path,
    config: HQTVAEConfig,
    work: Path,
    figures: dict[str, dict[str, float]],
    neighbours: list[tuple[str, str, float]],
) -> None:
    """``README.md`` in ``out``."""
    runs = {name: json.loads((work / name / "run.json").read_text()) for name in ("vae", "hqt")}
    last = {name: _end(work / name / "losses.jsonl") for name in ("vae", "hqt")}
    parts = checkpoints.load(out).modules()
    size = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    adversarial, perceptual = runs["vae"]["adversarial"] > 0, runs["vae"]["perceptual_weights"] is not None
    losses = ["squared error", *["a perceptual loss"] * perceptual, *["a discriminator"] * adversarial]
    notes = DEMO / str(config.vae.resolution) / NOTES  # what a run did that its files do not say
    told = f"\n\n{notes.read_text(encoding='utf-8').strip()}" if notes.is_file() else ""
    text = TEMPLATE.read_text(encoding="utf-8").format(
        resolution=config.vae.resolution,
        size=config.vae.resolution,
        sides=" + ".join(f"{side}x{side}" for side in config.vae.level_sides),
        codebooks=" + ".join(f"{count:,}" for count in config.vae.codebook_sizes),
        vae_parameters=size["vae"],
        hqt_parameters=size["transformer"],
        vae_steps=int(last["vae"]["step"]),
        vae_batch=runs["vae"]["batch_size"],
        hqt_steps=int(last["hqt"]["step"]),
        hqt_batch=runs["hqt"]["batch_size"],
        vae_psnr=last["vae"]["psnr"],
        top=last["hqt"]["level_0"],
        bottom=last["hqt"]["level_1"],
        recipe=f"Stage 1 was trained on {' and '.join(losses)} alone.{told}",
        neighbours="\n".join(f"| {prompt} | {caption} | {value:.1f} |" for prompt, caption, value in neighbours),
        **figures,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _end(file: Path, share: float = 0.02) -> dict[str, float]:
    """Means over the last rows of a log, and its last step."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tail = rows[-max(1, int(len(rows) * share)) :]
    means = {name: sum(row[name] for row in tail) / len(tail) for name in tail[0]}
    return {**means, "step": rows[-1]["step"]}
