"""From a run's configuration to the run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.config import (
    BlocksConfig,
    ConfigError,
    HQTVAEConfig,
    TransformerConfig,
    VAEConfig,
    from_dict,
    to_dict,
)
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.train.config import RunConfig, Stage1Run, Stage2Run
from hqtvae_fast.train.data import (
    EpochSampler,
    PictureDataset,
    all_captions,
    caption_template,
    make_loader,
    open_source,
)
from hqtvae_fast.train.losses import Stage1Weights
from hqtvae_fast.train.perceptual import load_perceptual
from hqtvae_fast.train.runner import LoopSettings, Runner
from hqtvae_fast.train.stage1 import Stage1, Stage1Settings
from hqtvae_fast.train.stage2 import Stage2, Stage2Settings
from hqtvae_fast.train.tokenizer import train_tokenizer

SHOWN = 8  # held-out pictures in a reconstruction sheet


def train_stage1(run: Stage1Run) -> None:
    """Train HQ-VAE; the result is ``out/model``, a checkpoint without stage 2."""
    config, accelerator = make_vae_config(run.model), start(run)
    loader, sampler, fingerprint = open_data(run, accelerator, config.resolution, {})
    torch.manual_seed(run.seed)  # the same initial weights on every rank
    perceptual = load_perceptual(_path(run.perceptual_weights), _path(run.lpips_weights))
    name = "off, as no weights were named" if perceptual is None else perceptual.name
    accelerator.print(f"perceptual loss: {name}")
    settings = Stage1Settings(
        steps=run.total_steps(sampler.batches_per_epoch),
        warmup_steps=run.warmup_steps(sampler.batches_per_epoch),
        learning_rate=run.learning_rate or Stage1Settings.learning_rate,
        weights=Stage1Weights(run.perceptual, run.adversarial, run.adversarial_start),
        discriminator_channels=run.discriminator_channels,
        restart_unused=run.restart_unused,
        seed=run.seed,
    )
    shown = held_out(run, config.resolution)
    task = Stage1(accelerator, HQVAE(config), settings, perceptual=perceptual, validation=shown)
    go(run, accelerator, task, loader, sampler, fingerprint, settings.steps)


def train_stage2(run: Stage2Run) -> None:
    """Train HQ-Transformer on a trained HQ-VAE; the result is ``out/model``, a checkpoint with both stages."""
    accelerator, vae = start(run), checkpoints.load(run.vae).vae
    config = make_transformer_config(run.model, vae.config)
    data: dict[str, Any] = {"condition": config.condition if config.condition in ("class", "text") else "none"}
    tokenizer = None
    if config.condition == "class":
        data["num_classes"] = config.num_classes
    elif config.condition == "text":
        data["caption"] = caption_template(run.caption)
        tokenizer = make_tokenizer(run, accelerator, config)
    loader, sampler, fingerprint = open_data(run, accelerator, vae.config.resolution, data)
    torch.manual_seed(run.seed)
    settings = Stage2Settings(
        steps=run.total_steps(sampler.batches_per_epoch),
        warmup_steps=run.warmup_steps(sampler.batches_per_epoch),
        learning_rate=run.learning_rate,
        weight_decay=run.weight_decay,
        clip=run.clip,
        soft_labels=run.soft_labels,
        sample_prompts=run.sample_prompts,
        sample_top_k=run.sample_top_k,
        sample_temperature=run.sample_temperature,
        seed=run.seed,
    )
    task = Stage2(accelerator, vae, HQTransformer(config), settings, tokenizer_file=tokenizer)
    go(run, accelerator, task, loader, sampler, fingerprint, settings.steps)


# ------------------------------------------------------------------------------------------------------------ models


def make_vae_config(changes: dict[str, Any]) -> VAEConfig:
    """The paper's HQ-VAE with some fields changed; unknown ones are named."""
    base = to_dict(HQTVAEConfig(transformer=None))
    base["vae"] |= changes
    return from_dict(base).vae


def make_transformer_config(changes: dict[str, Any], vae: VAEConfig) -> TransformerConfig:
    """The paper's HQ-Transformer (S) over this HQ-VAE's codes, with some fields changed."""
    base = TransformerConfig(
        codebook_sizes=vae.codebook_sizes,
        side=vae.level_sides[0],
        body=BlocksConfig(num_layers=12, residual_dropout=0.1),
        head=BlocksConfig(num_layers=4, residual_dropout=0.1),
        max_positions=vae.level_sides[0] ** 2,
    )
    data = dataclasses.asdict(base)
    for name, value in changes.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) and isinstance(data.get(name), dict) else value
    parsed = from_dict({"vae": dataclasses.asdict(vae), "transformer": data}).transformer
    assert parsed is not None
    return parsed


def make_tokenizer(run: Stage2Run, accelerator: Accelerator, config: TransformerConfig) -> Path:
    """Trained on the run's captions by the main process, once; ``out/tokenizer.json``."""
    file = Path(run.out) / checkpoints.TOKENIZER_FILE
    if accelerator.is_main_process and not file.is_file():
        captions = all_captions(open_source(run.data), caption_template(run.caption))
        train_tokenizer(captions, file, vocab_size=min(run.vocab_size, config.prefix_vocab_size))
    accelerator.wait_for_everyone()
    return file


# --------------------------------------------------------------------------------------------------------- the rest


def start(run: RunConfig) -> Accelerator:
    """Processes, precision, logs; the run's configuration is written beside what it makes."""
    directory = Path(run.out)
    directory.mkdir(parents=True, exist_ok=True)
    # Codebooks are the same on every rank by construction: nothing to send before each pass.
    plain = DistributedDataParallelKwargs(broadcast_buffers=False)
    # accelerate keeps the precision of a process's first run, and refuses another one for the next.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(
        mixed_precision=run.precision, log_with="tensorboard", project_dir=str(directory), kwargs_handlers=[plain]
    )
    accelerator.init_trackers("logs")
    set_seed(run.seed, device_specific=True)
    if accelerator.is_main_process:
        (directory / "run.json").write_text(json.dumps(dataclasses.asdict(run), indent=2) + "\n")
    return accelerator


def open_data(
    run: RunConfig, accelerator: Accelerator, resolution: int, condition: dict[str, Any]
) -> tuple[DataLoader[Any], EpochSampler, str]:
    source = open_source(run.data)
    dataset = PictureDataset(source, resolution, training=True, flip=run.flip, seed=run.seed, **condition)
    share = run.batch_size // (accelerator.num_processes * run.accumulate)
    if share * accelerator.num_processes * run.accumulate != run.batch_size:
        raise ConfigError(
            f"batch_size: expected a multiple of {accelerator.num_processes} processes x {run.accumulate}"
            f" micro-batches; got {run.batch_size}"
        )
    sampler = EpochSampler(
        len(dataset),
        run.batch_size,
        seed=run.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    loader = make_loader(dataset, sampler, workers=run.workers, device=accelerator.device)
    return loader, sampler, source.fingerprint()


def held_out(run: RunConfig, resolution: int) -> Tensor | None:
    """The first few pictures of the validation set, or None without one."""
    if not run.validation:
        return None
    dataset = PictureDataset(open_source(run.validation), resolution, training=False)
    return torch.stack([dataset[index].image for index in range(min(SHOWN, len(dataset)))])


def go(
    run: RunConfig,
    accelerator: Accelerator,
    task: Any,
    loader: DataLoader[Any],
    sampler: EpochSampler,
    fingerprint: str,
    steps: int,
) -> None:
    intervals = (run.log_every, run.save_every, run.picture_every)
    loop = LoopSettings(steps, *intervals, run.keep, run.stop_after, run.stop_after_minutes)
    runner = Runner(
        accelerator, task, loader, sampler, Path(run.out), loop, accumulate=run.accumulate, fingerprint=fingerprint
    )
    if accelerator.is_main_process:
        Console(stderr=True).print(
            f"{len(loader.dataset):,} pictures, {sampler.batches_per_epoch} updates an epoch, {steps:,} in all"  # type: ignore[arg-type]
        )
    try:
        runner.run()
    finally:
        accelerator.end_training()


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
