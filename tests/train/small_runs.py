"""Runs that take a second: a tiny model of each stage, 20 pictures, and what a run leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hqtvae_fast import checkpoint
from hqtvae_fast.train.config import Stage1Run, Stage2Run, read_run
from hqtvae_fast.train.loop.records import read_records, without_times

VAE = {
    "resolution": 16,
    "channels": 32,
    "channel_multipliers": [1, 1],
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "latent_channels": 16,
    "embed_dim": 8,
    "codebook_sizes": [16, 16],
}
BLOCKS = {"num_layers": 1, "num_heads": 2, "residual_dropout": 0.1}
TRANSFORMER = {"dim": 32, "num_classes": 2, "body": BLOCKS, "head": BLOCKS}
COMMON = {
    "batch_size": 4,
    "workers": 0,
    "log_every": 1,
    "picture_every": 0,
    "seed": 3,
    "save_every": 2,
    "precision": "no",
    "validation": "none",
}


def write_pictures(root: Path, size: tuple[int, int] = (20, 18)) -> Path:
    """Two classes of 10 pictures each, bright and dark, of ``size`` = (height, width)."""
    noise = np.random.default_rng(0)
    for label, (name, base) in enumerate((("bright", 180), ("dark", 40))):
        (root / name).mkdir(parents=True)
        for index in range(10):
            array = noise.integers(0, 60, (*size, 3)) + base
            Image.fromarray(array.astype(np.uint8)).save(root / name / f"{label}{index}.png")
    return root


def stage1(pictures, out, **changes) -> Stage1Run:
    values = {**COMMON, "data": str(pictures), "out": str(out), "model": VAE, "steps": 6, "learning_rate": 1e-3}
    return read_run(Stage1Run, None, {**values, "discriminator_channels": 32, **changes})


def stage2(pictures, vae, out, **changes) -> Stage2Run:
    values = {**COMMON, "data": str(pictures), "out": str(out), "vae": str(vae), "model": TRANSFORMER, "steps": 6}
    return read_run(Stage2Run, None, {**values, "learning_rate": 1e-3, **changes})


def losses(out: Path) -> list[dict[str, float]]:
    """What a run logged, but for what a clock said."""
    records, broken = read_records(out / "losses.jsonl")
    assert broken == 0
    return without_times(records)


def weights(out: Path) -> dict[str, torch.Tensor]:
    parts = checkpoint.load(out / "model").modules()
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[key]) for key, value in left.items())
