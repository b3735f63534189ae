"""From a run's configuration to the run."""

from __future__ import annotations

import dataclasses
import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.console import Console
from torch.utils.data import DataLoader

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.config import ConfigError
from hqtvae_fast.files import json_text, write_file
from hqtvae_fast.model import HQVAE
from hqtvae_fast.train.code_cache import CodeCache
from hqtvae_fast.train.code_cache_build import open_code_cache
from hqtvae_fast.train.config import RunConfig, Stage1Run, Stage2Run
from hqtvae_fast.train.data import (
    ClassFolder,
    EpochSampler,
    PictureDataset,
    Source,
    Stored,
    caption_template,
    class_names,
    make_loader,
    open_source,
    select,
)
from hqtvae_fast.train.initial import init_transformer, init_vae, own_condition, own_vocabulary
from hqtvae_fast.train.losses import Stage1Weights, Stage2Weights
from hqtvae_fast.train.perceptual import load_perceptual
from hqtvae_fast.train.prior import open_prior
from hqtvae_fast.train.runner import LOGS, LoopSettings, Runner
from hqtvae_fast.train.stage1 import Stage1, Stage1Settings
from hqtvae_fast.train.stage2 import Stage2, Stage2Settings
from hqtvae_fast.train.stored_codes import StoredCodes, codes_as_cache, codes_as_data
from hqtvae_fast.train.tokenizer import make_tokenizer, survey_captions
from hqtvae_fast.train.validation import HeldOut
from hqtvae_fast.world import WorldError, world

CLASS_NAMES = "class_names.json"
"""In a run's folder: the names of the classes that labels 0, 1, ... stand for, where the set has them."""


def train_stage1(run: Stage1Run) -> None:
    """Train HQ-VAE; the result is ``out/model``, a checkpoint without stage 2."""
    accelerator = start(run)
    torch.manual_seed(run.seed)  # the same initial weights on every rank
    config, vae = init_vae(run.init, run.model)
    source = select(open_source(run.data), run.selected)
    loader, sampler = open_data(run, accelerator, source, config.resolution, {})
    perceptual = load_perceptual(_path(run.perceptual_weights), _path(run.lpips_weights))
    name = "off, as no weights were named" if perceptual is None else perceptual.name
    accelerator.print(f"perceptual loss: {name}")
    settings = Stage1Settings(
        steps=run.total_steps(sampler.batches_per_epoch),
        warmup_steps=run.warmup_steps(sampler.batches_per_epoch),
        learning_rate=Stage1Settings.learning_rate if run.learning_rate is None else run.learning_rate,
        schedule=run.schedule,
        weights=Stage1Weights(
            perceptual=run.perceptual,
            adversarial=run.adversarial,
            adversarial_start=run.adversarial_start,
            commitment=run.commitment,
            top_only=run.top_only,
            residual=run.residual,
        ),
        discriminator_channels=run.discriminator_channels,
        restart_unused=run.restart_unused,
        seed=run.seed,
    )
    held_out = open_held_out(run, accelerator, source, config.resolution, {})
    task = Stage1(accelerator, vae, settings, perceptual=perceptual, held_out=held_out)
    go(run, accelerator, task, loader, sampler, source.fingerprint(), settings.steps)


def train_stage2(run: Stage2Run) -> None:
    """Train HQ-Transformer on a trained HQ-VAE; the result is ``out/model``, a checkpoint with both stages."""
    # It may be stored in half precision; codes are chosen in fp32.
    accelerator, vae = start(run), checkpoints.load(run.vae or run.prior or run.init or "").vae.float()
    source = select(open_source(run.data, codes=True), run.selected)
    condition = run.model.get("condition") or own_condition(run.init) or "class"
    words = make_tokenizer(run, accelerator, source, own_vocabulary(run.init)) if condition == "text" else None
    torch.manual_seed(run.seed)  # the same initial weights on every rank
    transformer = init_transformer(run.init, condition, (), words, run.model, vae.config, say=accelerator.print)
    config = transformer.config
    prior = open_prior(run.prior, vae, config)
    if config.condition == "codes" and prior is None:
        accelerator.print("no prior was named: the result will be half a model; hqtvae convert joins the halves")
    data: dict[str, Any] = {"condition": config.condition if config.condition in ("class", "text") else "none"}
    if config.condition == "class":
        data["num_classes"] = config.num_classes
    elif config.condition == "text":
        data["caption"] = caption_template(run.caption)
    stored = open_stored(run, accelerator, vae, source)
    loader, sampler = open_data(run, accelerator, source, vae.config.resolution, data, stored)
    settings = make_stage2_settings(run, sampler.batches_per_epoch)
    transformer.set_activation_checkpointing(run.activation_checkpointing)
    task = Stage2(
        accelerator,
        vae,
        transformer,
        settings,
        tokenizer_file=None if words is None else words.file,
        prior=prior,
        held_out=open_held_out(run, accelerator, source, vae.config.resolution, data),
        stored=None if stored is None else stored.content,
    )
    if task.tokenizer is not None and accelerator.is_main_process:
        lost = survey_captions(source, data["caption"], task.tokenizer)
        if lost:
            warnings.warn(lost.describe("captions"), stacklevel=2)
    go(run, accelerator, task, loader, sampler, source.fingerprint(), settings.steps)


def make_stage2_settings(run: Stage2Run, per_epoch: int) -> Stage2Settings:
    return Stage2Settings(
        steps=run.total_steps(per_epoch),
        warmup_steps=run.warmup_steps(per_epoch),
        learning_rate=run.learning_rate,
        weight_decay=run.weight_decay,
        clip=run.clip,
        soft_labels=run.tau,
        weights=Stage2Weights(run.level_weights, run.image_weight, run.text_weight),
        sample_prompts=run.sample_prompts,
        sample_top_k=run.sample_top_k,
        sample_temperature=run.sample_temperature,
        seed=run.seed,
    )


# --------------------------------------------------------------------------------------------------------- the rest


def start(run: RunConfig) -> Accelerator:
    """Processes, precision, logs; the run's configuration is written beside what it makes."""
    directory = Path(run.out)
    directory.mkdir(parents=True, exist_ok=True)
    accelerator = join_world(run.precision, directory)
    accelerator.init_trackers(LOGS)
    set_seed(run.seed, device_specific=True)
    if accelerator.is_main_process:
        write_file(directory / "run.json", json.dumps(dataclasses.asdict(run), indent=2).encode() + b"\n")
    return accelerator


def join_world(precision: str, directory: Path) -> Accelerator:
    """This process among those that train together, which are the ones that :func:`hqtvae_fast.world.world` tells of.

    WorldError where accelerate sees others: each process would be the only one, and all would write one run.
    """
    here = world()
    # Codebooks are the same on every rank by construction: nothing to send before each pass.
    plain = DistributedDataParallelKwargs(broadcast_buffers=False)
    # accelerate keeps the precision of a process's first run, and refuses another one for the next.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(
        # Without a GPU it takes several processes for a job only if it is told that they use the CPU.
        cpu=here.size > 1 and not torch.accelerator.is_available(),
        mixed_precision=precision,
        log_with="tensorboard",
        project_dir=str(directory),
        kwargs_handlers=[plain],
    )
    found = (accelerator.process_index, accelerator.num_processes)
    if found != (here.rank, here.size):
        raise WorldError(
            f"WORLD_SIZE: expected process {here.rank} of {here.size}, as the launcher says; accelerate found"
            f" {found[0]} of {found[1]} (on {accelerator.device}): start one process, or set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def open_data(
    run: RunConfig,
    accelerator: Accelerator,
    source: Source,
    resolution: int,
    condition: dict[str, Any],
    stored: Stored | None = None,
) -> tuple[DataLoader[Any], EpochSampler]:
    """The training set. ``stored``: what its samples have in place of pixels."""
    dataset = PictureDataset(source, resolution, flip=run.flip, seed=run.seed, stored=stored, **condition)
    if accelerator.is_main_process and (names := class_names(source)):
        write_file(Path(run.out) / CLASS_NAMES, json_text(names, indent=1).encode() + b"\n")
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
    return loader, sampler


def open_stored(run: Stage2Run, accelerator: Accelerator, vae: HQVAE, source: Source) -> CodeCache | StoredCodes | None:
    """What the run reads in the pictures' place: codes that are its data, or a code cache, which is made with what this
    run needs of each picture; None for pixels."""
    needs: dict[str, Any] = {"soft_labels": run.tau is not None, "mirrored": run.flip}
    stored = codes_as_data(source, vae, **needs)
    if run.code_cache is None:
        return stored
    if stored is not None:
        raise ConfigError(f"code_cache: expected none, as the data are codes; got {run.code_cache}")
    file = Path(run.code_cache)
    if not file.is_dir():
        return open_code_cache(file, accelerator, vae, source, **needs, workers=run.workers)
    stored = codes_as_cache(file, source, vae, **needs)
    if stored.broken:
        accelerator.print(f"codes in {file}: {stored.broken:,} of {len(source):,} pictures are broken")
    return stored


def open_held_out(
    run: RunConfig, accelerator: Accelerator, training: Source, resolution: int, condition: dict[str, Any]
) -> HeldOut | None:
    """The validation set, or None without one. Its class folders may be some of the training set's."""
    if not run.validation:
        return None
    source = open_source(run.validation)
    if isinstance(source, ClassFolder) and (names := class_names(training)):
        source = open_source(run.validation, class_names=names)
    return HeldOut(
        PictureDataset(select(source, run.selected), resolution, training=False, **condition),
        limit=run.validation_pictures,
        batch_size=run.batch_size // (accelerator.num_processes * run.accumulate),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        workers=run.workers,
    )


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
    stops = (run.stop_after, run.stop_after_minutes)
    loop = LoopSettings(steps, *intervals, run.keep, *stops, validate_every=run.validate_every)
    runner = Runner(
        accelerator, task, loader, sampler, Path(run.out), loop, accumulate=run.accumulate, fingerprint=fingerprint
    )
    if accelerator.is_main_process:
        Console(stderr=True).print(
            f"{len(loader.dataset):,} pictures, {sampler.batches_per_epoch} updates an epoch, {steps:,} in all"  # type: ignore[arg-type]
        )
    try:
        runner.run()
    except BaseException:
        with suppress(Exception):  # a log that cannot be written is no news, and would hide the reason
            runner.close()
        raise
    runner.close()


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
