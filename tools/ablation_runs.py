"""The runs of the demo-size ablations: what the paper's tables 4, 5 and 6 vary, on 32x32 pictures and tiny nets.

Every stage-1 run has the same number of updates on batches of the same size, and so has every stage-2 run; a run says
only in what it differs. Maps have the paper's shape at half the side: 4x4 top and 8x8 bottom codes for its 8x8 + 16x16.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VAE = {
    "resolution": 32,
    "channels": 32,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
    "latent_channels": 64,
    "embed_dim": 32,
    "codebook_sizes": [256, 256],
}
BODY = {"num_layers": 4, "num_heads": 4, "residual_dropout": 0.0}
HEAD = {"num_layers": 2, "num_heads": 4, "residual_dropout": 0.0}
TRANSFORMER = {"dim": 128, "condition": "none", "body": BODY, "head": HEAD}
STAGE1 = {
    "batch_size": 32,
    "steps": 320,
    "warmup_epochs": 0.2,
    "learning_rate": 1.0e-3,
    "perceptual": 0.0,  # no weights for it are at hand, and a discriminator needs more updates than these
    "adversarial": 0.0,
    "restart_unused": True,
    "seed": 0,
}
STAGE2 = {
    "batch_size": 64,
    "steps": 200,
    "warmup_epochs": 0.2,
    "learning_rate": 1.0e-3,
    "weight_decay": 0.01,
    "soft_labels": 0,
    "seed": 0,
}
LOOP = {"workers": 0, "log_every": 10, "save_every": 60, "picture_every": 0, "keep": 1}


@dataclass(frozen=True)
class Run:
    """``row``: what the paper calls it, "TABLE: row"; ``model`` and ``fields`` come on top of the stage's own.

    ``vae``, ``prior``: names of the runs that it needs. ``half``: a part of a model that another run completes, which
    no row of a table is of.
    """

    name: str
    stage: str
    row: str
    model: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    vae: str | None = None
    prior: str | None = None
    half: bool = False

    def config(self) -> dict[str, Any]:
        """Fields of the run's YAML file, without what only its user knows: data, out, vae, prior."""
        common, model = (STAGE1, VAE) if self.stage == "stage1" else (STAGE2, TRANSFORMER)
        made = {**common, **LOOP, **self.fields, "model": {**model, **self.model}}
        return {**made, "validate_every": made["steps"]}


THREE = {"codebook_sizes": [256, 256, 256], "combine": "sum"}
GLOBAL = {"decoding": "global"}

RUNS = (
    Run("vae-shuffle", "stage1", "4: PixelUnshuffle", {"resampler": "pixel_shuffle"}),
    Run("vae-average", "stage1", "4: Avg. Pool.", {"resampler": "average"}),
    Run("vae-conv", "stage1", "4: Conv2, top codes share the loss", {"resampler": "conv"}, {"top_only": "all"}),
    Run("hierarchical", "stage2", "5: Locally hierarchical, one-hot", vae="vae-shuffle"),
    Run("sequential", "stage2", "5: Locally sequential, one-hot", {"decoding": "sequential"}, vae="vae-shuffle"),
    Run("hierarchical-soft", "stage2", "5: Locally hierarchical, soft", {}, {"soft_labels": 1.0}, vae="vae-shuffle"),
    Run("bidirectional", "stage2", "5: Bidirectional, one-hot", {"decoding": "bidirectional"}, vae="vae-shuffle"),
    Run("global-prior", "stage2", "5: Global, first half", GLOBAL, vae="vae-shuffle", half=True),
    Run(
        "global",
        "stage2",
        "5: Global conditioning, one-hot",
        {**GLOBAL, "condition": "codes", "body": {**BODY, "num_layers": 2}},
        vae="vae-shuffle",
        prior="global-prior",
    ),
    Run(
        "vae-4+8+16",
        "stage1",
        "6: 4x4 + 8x8 + 16x16",
        {**THREE, "channel_multipliers": [2], "attention_resolutions": [16]},
    ),
    Run("levels-4+8+16", "stage2", "6: 4x4 + 8x8 + 16x16", vae="vae-4+8+16"),
    Run("vae-2+4+8", "stage1", "6: 2x2 + 4x4 + 8x8", THREE),
    Run("levels-2+4+8", "stage2", "6: 2x2 + 4x4 + 8x8", vae="vae-2+4+8"),
    Run("vae-2+4", "stage1", "6: 2x2 + 4x4", {"channel_multipliers": [1, 2, 2], "attention_resolutions": [4]}),
    Run("levels-2+4", "stage2", "6: 2x2 + 4x4", vae="vae-2+4"),
    Run("vae-shuffle-long", "stage1", "4: PixelUnshuffle, 50/15 times as long", fields={"steps": 1067}),
)
"""In the order in which they are made: what a run needs comes before it. (The last is the row of 50 epochs for 15.)"""
