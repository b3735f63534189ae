"""What is asked of a model, held against its configuration before its weights are read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hqtvae_fast.cli.output import waiting
from hqtvae_fast.cli.sample_options import named_as_options

if TYPE_CHECKING:
    from torch import Tensor

    from hqtvae_fast.config import HQTVAEConfig


def config_of(checkpoint: str, refiner: str | os.PathLike[str] | None = None) -> HQTVAEConfig:
    """A checkpoint's configuration; CheckpointError where there is none."""
    with waiting(f"Looking for {checkpoint}"):  # on the Hub, it may be
        from hqtvae_fast.checkpoint_config import read_config

        return read_config(checkpoint, refiner)


def check_conditions(checkpoint: str, config: HQTVAEConfig, labels: Sequence[int], prompts: Sequence[str]) -> None:
    """ValueError, in the options' names and before anything heavy is imported, where a model wants another condition,
    or has no tokenizer for its own."""
    from hqtvae_fast.checkpoint_config import check_tokenizer
    from hqtvae_fast.config import check_condition

    with named_as_options():
        check_condition(config, ["class_labels"] * bool(labels) + ["prompt"] * bool(prompts))
        check_tokenizer(checkpoint, config)


def check_drawing(config: HQTVAEConfig, conditions: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
    """ValueError, in the options' names, on what the pipeline would refuse: ``conditions`` and ``sampling`` are its
    arguments."""
    with waiting("Starting"):
        import torch

        from hqtvae_fast.request import read_drawing

    def tokenize(prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, dtype=torch.int64, device="cpu")  # their number is all that counts here

    asked = (conditions.get("class_labels"), conditions.get("prompt"), conditions.get("given_top_codes"))
    with named_as_options():
        read_drawing(config, *asked, (sampling["temperature"], sampling["top_k"], sampling["top_p"]), tokenize)
