"""What is asked of a model, held against its configuration before its weights are read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hqtvae_fast.cli.output import waiting
from hqtvae_fast.cli.sample_options import named_as_options
from hqtvae_fast.world import world

if TYPE_CHECKING:
    from torch import Tensor

    from hqtvae_fast.config import HQTVAEConfig


def config_of(checkpoint: str, refiner: str | os.PathLike[str] | None = None) -> HQTVAEConfig:
    """A checkpoint's configuration; CheckpointError where there is none."""
    with waiting(f"Looking for {checkpoint}"):  # on the Hub, it may be
        from hqtvae_fast.checkpoint_config import read_config

        return read_config(checkpoint, refiner)


def read_conditions(
    checkpoint: str, config: HQTVAEConfig, classes: Sequence[str], prompts: Sequence[str], *, required: bool = True
) -> list[int]:
    """The labels of ``--classes``; the first process warns of those without training pictures.

    ValueError, in the options' names and before anything heavy is imported, where there is no such class, where a model
    wants another condition, has no tokenizer for its own, or is given none though one is ``required``.
    """
    from hqtvae_fast.checkpoint_config import check_tokenizer
    from hqtvae_fast.classes import UntrainedClassWarning
    from hqtvae_fast.config import check_condition

    if config.classes.names and required and not (classes or prompts):
        example = config.classes.spelled(config.classes.trained[:2])
        raise ValueError(f"this model is class-conditional: expected --classes, such as {example!r}; got none")
    if required or classes or prompts:
        with named_as_options():
            check_condition(config, ["class_labels"] * bool(classes) + ["prompt"] * bool(prompts))
            check_tokenizer(checkpoint, config)
    labels = config.classes.parse("--classes", classes)
    if world().rank == 0:
        config.classes.warn_untrained(labels)
    warnings.simplefilter("ignore", UntrainedClassWarning)  # the pipeline has nothing to add
    return labels


def check_drawing(config: HQTVAEConfig, conditions: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
    """ValueError, in the options' names, on what the pipeline would refuse: ``conditions`` and ``sampling`` are its
    arguments."""
    with waiting("Starting"):
        import torch

        from hqtvae_fast.completing import read_completion
        from hqtvae_fast.guiding import read_guidance
        from hqtvae_fast.pictures.pixels import read_pixels
        from hqtvae_fast.request import read_drawing

    def tokenize(prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, dtype=torch.int64, device="cpu")  # their number is all that counts here

    def encode(images: Any) -> list[Tensor]:
        count = len(read_pixels(images, config.vae.resolution))
        return [torch.zeros(count, side, side, dtype=torch.int64, device="cpu") for side in config.vae.level_sides]

    filters, given = (sampling["temperature"], sampling["top_k"], sampling["top_p"]), conditions.get("given_top_codes")
    with named_as_options():
        completion = read_completion(config, sampling.get("image"), sampling.get("keep"), given, encode)
        given = given if completion is None else completion.given
        read_drawing(config, conditions.get("class_labels"), conditions.get("prompt"), given, filters, tokenize)
        read_guidance(config, sampling.get("guidance_scale", 1), sampling.get("negative_prompt"), tokenize)
