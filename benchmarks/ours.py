"""This package's sampler, as the benchmark runs it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.checkpoint import Checkpoint
from hqtvae_fast.config import PRESETS, BlocksConfig, ConfigError, HQTVAEConfig, TransformerConfig, VAEConfig
from hqtvae_fast.engine import SamplingParams, decode_codes, draw_codes, image_seeds
from hqtvae_fast.ops.sample_logits import check_sampling
from hqtvae_fast.pipeline import HQTVAEPipeline

SEED = 0

TINY = HQTVAEConfig(
    vae=VAEConfig(
        resolution=32,
        channels=32,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        latent_channels=32,
        embed_dim=32,
        codebook_sizes=(64, 64),
    ),
    transformer=TransformerConfig(
        codebook_sizes=(64, 64),
        side=4,
        dim=64,
        body=BlocksConfig(num_layers=2, num_heads=4),
        head=BlocksConfig(num_layers=1, num_heads=4),
        num_classes=10,
        max_positions=16,
    ),
)
"""A model of the usual shape that runs in a second: it shows that the benchmark works, and says nothing about speed."""

BENCHMARK_PRESETS = {**PRESETS, "tiny": TINY}


def open_model(preset: str, directory: Path | None) -> Checkpoint:
    """A checkpoint directory, or the preset with random weights, always the same ones."""
    if directory is not None:
        checkpoint = checkpoints.load(directory)
    elif preset in BENCHMARK_PRESETS:
        torch.manual_seed(SEED)
        checkpoint = checkpoints.build(BENCHMARK_PRESETS[preset])
    else:
        raise ConfigError(f"preset: expected one of {', '.join(BENCHMARK_PRESETS)}; got {preset!r}")
    first = checkpoint.transformer
    if first is None or first.config.condition == "codes":
        raise ConfigError(f"{directory}: expected a checkpoint that can draw from nothing; it lacks a transformer")
    return checkpoint


class Ours:
    """Draws with :func:`draw_codes` and decodes with :func:`decode_codes`: what the pipeline does for each batch."""

    name = "hqtvae_fast"

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: str, params: SamplingParams) -> None:
        pipeline = HQTVAEPipeline(checkpoint, device=device, dtype=None if dtype == "auto" else dtype)
        assert pipeline.transformer is not None  # open_model has seen to it
        self.vae, self.transformer, self.refiner = pipeline.vae, pipeline.transformer, pipeline.refiner
        self.device, self.params = pipeline.device, params
        self.precision = str(pipeline.dtype).removeprefix("torch.")
        models = [model for model in (self.transformer, self.refiner) if model is not None]
        self.steps = sum(model.config.num_steps for model in models)
        self.parameters = sum(value.numel() for model in models for value in model.parameters())
        self._generator = torch.Generator().manual_seed(SEED)

    def draw(self, count: int) -> tuple[Tensor, ...]:
        condition, seeds = self._condition(count), image_seeds(SEED, count).to(self.device)
        codes = draw_codes(self.transformer, condition, seeds, _levels(self.params, 0, self.transformer.config))
        if self.refiner is None:
            return codes
        params = _levels(self.params, len(codes), self.refiner.config)
        return (*codes, *draw_codes(self.refiner, codes[0].flatten(1), seeds, params))

    def decode(self, codes: tuple[Tensor, ...]) -> Tensor:
        missing = self.vae.config.num_levels - len(codes)
        return decode_codes(self.vae, [*codes, *[None] * missing])

    def _condition(self, count: int) -> Tensor | None:
        """Random labels or text tokens; the time does not depend on which."""
        config = self.transformer.config
        if config.condition == "none":
            return None
        text = config.condition == "text"
        high = config.prefix_vocab_size if text else config.num_classes
        shape = (count, config.prefix_length) if text else (count,)
        return torch.randint(high, shape, generator=self._generator).to(self.device)


def same_for_all(config: VAEConfig, temperature: float, top_k: int | None, top_p: float | None) -> SamplingParams:
    """One temperature, top-k and top-p for every level of the VAE; ValueError where one is out of range."""
    for size in config.codebook_sizes:
        check_sampling(temperature, top_k, top_p, size)
    count = config.num_levels
    return SamplingParams((temperature,) * count, (top_k,) * count, (top_p,) * count)


def _levels(params: SamplingParams, first: int, config: TransformerConfig) -> SamplingParams:
    levels = slice(first, first + config.num_levels)
    return SamplingParams(params.temperature[levels], params.top_k[levels], params.top_p[levels])
