"""What a run does that nobody has told how: a model and a training that fit the data and the machine.

``tiny`` and ``small`` are files beside the presets, and so is how a checkpoint is fine-tuned; ``paper`` is the paper's
ImageNet model with, by what the pictures come with, its transformer S, S-text or FFHQ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.train.config import RunConfig, Size, merged
from hqtvae_fast.train.data import Facts
from hqtvae_fast.train.presets import load_preset, load_size
from hqtvae_fast.train.sizing.models import make_transformer_config, make_vae_config

PAPER = {"class": "S", "text": "S-text", "none": "FFHQ"}
MANY = 50_000
"""Pictures from which the paper's model has something to learn from."""
ROOM = 40 * 2**30
"""Bytes of GPU memory for it: a batch of 64 with optimizer states, estimated."""
VECTORS_PER_CODE = 6
"""Vectors of the training set for each code: with fewer, a code stands for one place of one picture."""
LEAST_CODES = 64
FEW = 60
SEEN = {"stage1": (12_000, 0.3), "stage2": (14_000, 0.7)}
"""Pictures that training passes over before its losses level off: so many of a set of FEW, and their number to the
power of the second of a larger one. Stage 1 learns strokes and colours, which pictures share; stage 2 each picture."""
FINE_TUNING = "fine-tuning"
MORE = {"small": 4.0, FINE_TUNING: 0.125}
"""A larger model has more to learn, and one that is trained on less."""


@dataclass(frozen=True)
class Picked:
    """``size``: its name, empty where the model is another's. ``fields``: of the run, for what nobody has named."""

    size: str
    fields: dict[str, Any]


def default_size(facts: Facts, device: torch.device) -> Size:
    """What the device can train within hours, and the pictures fill."""
    if device.type != "cuda":
        return "tiny"
    room = torch.cuda.get_device_properties(device).total_memory
    return "paper" if facts.pictures >= MANY and room >= ROOM else "small"


def pick(run: RunConfig, facts: Facts, device: torch.device) -> Picked:
    """The size asked for, or the one that fits; none beside a model that is given. The batch and how long to train go
    by the number of pictures."""
    own_model = run.init is not None or "model" in run.given
    size = run.size or ("" if own_model else default_size(facts, device))
    kind = size or (FINE_TUNING if run.init is not None else "")
    fields: dict[str, Any] = {}
    if kind:
        fields = _fields(kind, run.stage, facts)
        fields["batch_size"] = fitting_batch(fields["batch_size"], facts.pictures)
    if size and run.stage == "stage1":
        fields["model"] = _fitted(fields["model"], facts, run.resolution)
    batch = fields.get("batch_size", run.batch_size) if "batch_size" not in run.given else run.batch_size
    epochs = fields.pop("epochs", 0)
    seen = max(epochs * facts.pictures, pictures_seen(run.stage, kind, facts.pictures))
    return Picked(size, {**fields, "steps": max(1, math.ceil(seen / batch))})


def size_config(name: str, num_classes: int = 10) -> HQTVAEConfig:
    """Both stages of ``tiny`` or ``small`` with all of their codes, drawn from classes."""
    vae = make_vae_config(load_size(name, "stage1")["model"])
    fields = {**load_size(name, "stage2")["model"], "condition": "class", "num_classes": num_classes}
    return HQTVAEConfig(vae=vae, transformer=make_transformer_config(fields, vae))


def pictures_seen(stage: str, kind: str, pictures: int) -> float:
    """Pictures to train on, one counted as often as it is seen."""
    base, power = SEEN[stage]
    return base * (max(pictures, FEW) / FEW) ** power * MORE.get(kind, 1.0)


def fitting_batch(largest: int, pictures: int) -> int:
    """At most a third of the set, so that a pass has some updates; a power of two, which splits among processes."""
    return min(largest, max(8, 2 ** int(math.log2(max(pictures, 3) / 3))))


def _fields(kind: str, stage: str, facts: Facts) -> dict[str, Any]:
    if kind != "paper":
        return load_size(kind, stage)
    return dict(load_preset(stage, "imagenet" if stage == "stage1" else PAPER[facts.condition]).fields)


def _fitted(model: dict[str, Any], facts: Facts, resolution: int | None) -> dict[str, Any]:
    """The size's HQ-VAE for pictures of this side, with codebooks that so many pictures fill."""
    config = make_vae_config(merged(model, {} if resolution is None else {"resolution": resolution}))
    vectors = [facts.pictures * side * side for side in config.level_sides]
    sizes = [
        min(size, max(LEAST_CODES, 2 ** int(math.log2(max(1, count // VECTORS_PER_CODE)))))
        for size, count in zip(config.codebook_sizes, vectors, strict=True)
    ]
    return {**model, "resolution": config.resolution, "codebook_sizes": sizes}
