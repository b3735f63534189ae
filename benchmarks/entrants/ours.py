"""This package's sampler, as the benchmark runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hqtvae_fast
from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.checkpoint import Checkpoint
from hqtvae_fast.checkpoint_config import read_config
from hqtvae_fast.config import PRESETS, BlocksConfig, ConfigError, HQTVAEConfig, TransformerConfig, VAEConfig
from hqtvae_fast.engine import Rows, SamplingParams
from hqtvae_fast.engine.options import Quantization
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.ops.kernels.sample_logits import check_sampling
from hqtvae_fast.pipeline import HQTVAEPipeline
from hqtvae_fast.plan import Plan
from hqtvae_fast.seeds import image_seeds
from hqtvae_fast.train.sizing.sizes import size_config

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

BENCHMARK_PRESETS = {
    **PRESETS,
    "tiny": TINY,
    "demo": read_config(Path(hqtvae_fast.__file__).parent / "assets/demo"),
    "size-tiny": size_config("tiny"),
    "size-small": size_config("small"),
}


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
    """The pipeline, taken apart into drawing and decoding, and as a user has it: batch by batch, and as a stream.

    Both halves are the executor's, so that a GPU replays the graphs that the pipeline would. ``engine``: how that one
    runs, in the words of a plan; without a word of it, drawing and decoding overlap where it streams, on a CPU too.
    ``plan``: a file, which says all of it; ``accept``: facts of it that may differ here.
    """

    name = "hqtvae_fast"
    warm_ups = 1

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: str,
        params: SamplingParams,
        *,
        quantization: Quantization = None,
        engine: str = "",
        plan: Path | None = None,
        accept: Sequence[str] = (),
    ) -> None:
        wanted = None if dtype == "auto" else dtype
        own = Plan().with_engine(engine if "overlap" in engine else f"overlap=on, {engine}")
        self.pipeline = HQTVAEPipeline(
            checkpoint, device=device, dtype=wanted, quantization=quantization, plan=plan or own, accept=accept
        )
        assert self.pipeline.transformer is not None  # open_model has seen to it
        self._executor = self.pipeline._executor  # a second one would capture everything twice
        self.device, self.dtype, self.params = self.pipeline.device, self.pipeline.dtype, params
        chosen = [str(self.dtype).removeprefix("torch."), *(["TF32"] if self.pipeline.precision.tf32 else [])]
        chosen += [asked for asked in (quantization, engine) if asked]
        self.precision = ", ".join(chosen)
        self._models = self._executor.models
        self.config = self._models[0].config
        self.steps = sum(model.config.num_steps for model in self._models)
        self.parameters = sum(value.numel() for model in self._models for value in model.parameters())
        self._generator = torch.Generator().manual_seed(SEED)
        if self.config.condition == "text":
            self.pipeline.tokenizer = self._tokens  # of random weights there is none

    def draw(self, count: int) -> tuple[Tensor, ...]:
        """Code maps of each level, top first."""
        condition = random_condition(self.config, count, self._generator)
        seeds = image_seeds(SEED, count).to(self.device)
        starts = [sum(model.config.num_levels for model in self._models[:index]) for index in range(len(self._models))]
        params = [_levels(self.params, *at) for at in zip(starts, self._models, strict=True)]
        invalid = torch.zeros((), dtype=torch.bool, device=self.device)
        condition = None if condition is None else condition.to(self.device)
        with torch.inference_mode():
            return self._executor.draw(*Rows(condition, seeds, params), invalid, lambda: None)

    def decode(self, codes: tuple[Tensor, ...]) -> Tensor:
        with torch.inference_mode():
            return self._executor.decode(codes, len(codes[0]))

    def one_by_one(self, sizes: Sequence[int]) -> None:
        """Whole pictures on the host, a call a batch: the next one begins when this one is there."""
        for count in sizes:
            self.pipeline(**self._request(count), batch_size=count)

    def stream(self, sizes: Sequence[int]) -> None:
        """The same as a stream, which on a GPU draws the next batch while this one is decoded."""
        for _ in self.pipeline.stream(**self._request(sum(sizes)), batch_size=sizes[0]):
            pass

    def _request(self, count: int) -> dict[str, Any]:
        """Arguments of the pipeline."""
        condition = random_condition(self.config, count, self._generator)
        chosen: dict[str, Any] = {"num_images": count} if condition is None else {"class_labels": condition}
        if self.config.condition == "text":
            chosen = {"prompt": ["random"] * count}
        params = {name: list(values) for name, values in vars(self.params).items()}
        return {**chosen, **params, "seed": SEED, "progress": False}

    def _tokens(self, prompts: Sequence[str]) -> Tensor:
        tokens = random_condition(self.config, len(prompts), self._generator)
        assert tokens is not None
        return tokens


def random_condition(config: TransformerConfig, count: int, generator: torch.Generator) -> Tensor | None:
    """Labels or text tokens on the CPU, None where there is neither; the time does not depend on which."""
    if config.condition == "none":
        return None
    text = config.condition == "text"
    high = config.prefix_vocab_size if text else config.num_classes
    return torch.randint(high, (count, config.prefix_length) if text else (count,), generator=generator)


def same_for_all(config: VAEConfig, temperature: float, top_k: int | None, top_p: float | None) -> SamplingParams:
    """One temperature, top-k and top-p for every level of the VAE; ValueError where one is out of range."""
    for size in config.codebook_sizes:
        check_sampling(temperature, top_k, top_p, size)
    count = config.num_levels
    return SamplingParams((temperature,) * count, (top_k,) * count, (top_p,) * count)


def _levels(params: SamplingParams, first: int, model: HQTransformer) -> SamplingParams:
    levels = slice(first, first + model.config.num_levels)
    return SamplingParams(params.temperature[levels], params.top_k[levels], params.top_p[levels])
