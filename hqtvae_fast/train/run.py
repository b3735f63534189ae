"""From a run's configuration to the run, for each stage."""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.config import Condition, ConfigError, HQTVAEConfig, TransformerConfig
from hqtvae_fast.model import HQVAE
from hqtvae_fast.run_folder import MODEL
from hqtvae_fast.train.codes.build import open_code_cache
from hqtvae_fast.train.codes.cache import CodeCache
from hqtvae_fast.train.codes.stored import (
    StoredCodes,
    codes_as_cache,
    codes_as_data,
    codes_as_held_out,
    part_of,
    settle,
)
from hqtvae_fast.train.config import RunConfig, Stage1Run, Stage2Run
from hqtvae_fast.train.data import (
    Facts,
    PictureDataset,
    PictureStream,
    Source,
    Stored,
    caption_template,
    make_loader,
)
from hqtvae_fast.train.initial import init_transformer, init_vae, own_vocabulary
from hqtvae_fast.train.loop.runner import LoopSettings, Runner
from hqtvae_fast.train.losses import Stage1Weights, Stage2Weights
from hqtvae_fast.train.losses.perceptual import load_perceptual
from hqtvae_fast.train.memory import in_memory
from hqtvae_fast.train.prior import open_prior
from hqtvae_fast.train.shown.telling import Telling
from hqtvae_fast.train.stage1 import Stage1, Stage1Settings
from hqtvae_fast.train.stage2 import Stage2, Stage2Settings
from hqtvae_fast.train.start import Started, intervals, start
from hqtvae_fast.train.tokenizer import make_tokenizer, survey_captions
from hqtvae_fast.train.validation import HeldOut
from hqtvae_fast.train.words import say


def train_stage1(run: Stage1Run, telling: Telling | None = None) -> Path | None:
    """Train HQ-VAE. Returns ``out/model``, a checkpoint without stage 2; None if the run was stopped before its end.

    ``telling``: who hears of it. Stopped on a signal, when all is saved.
    """
    begun = start(run)
    run, accelerator = begun.run, begun.accelerator
    torch.manual_seed(run.seed)  # the same initial weights on every rank
    fields = run.model if run.resolution is None else {**run.model, "resolution": run.resolution}
    config, vae = init_vae(run.init, fields)
    whole = HQTVAEConfig(vae=config, transformer=None)
    begun = in_memory(begun, whole)
    loader, stream = open_data(begun, config.resolution, {})
    settings = make_stage1_settings(run, stream.batches_per_epoch, begun.more)
    perceptual = load_perceptual(_path(run.perceptual_weights), _path(run.lpips_weights))
    if run.perceptual:
        name = "off, as no weights were named" if perceptual is None else perceptual.name
        say(f"perceptual loss: {name}")
    held_out = open_held_out(begun, vae.config.resolution, {})
    task = Stage1(accelerator, vae, settings, perceptual=perceptual, held_out=held_out)
    return go(begun, whole, task, loader, stream, settings.steps, telling or Telling())


def make_stage1_settings(run: Stage1Run, per_epoch: float, more: float = 0.0) -> Stage1Settings:
    return Stage1Settings(
        steps=run.total_steps(per_epoch, more),
        warmup_steps=run.warmup_steps(per_epoch, more),
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
        perceptual_crop=run.perceptual_crop,
        restart_unused=run.restart_unused,
        seed=run.seed,
    )


def train_stage2(run: Stage2Run, telling: Telling | None = None) -> Path | None:
    """Train HQ-Transformer on a trained HQ-VAE. Returns ``out/model``, a checkpoint with both stages; None if the run
    was stopped before its end. ``telling`` as in :func:`train_stage1`."""
    begun = start(run, settle)
    run, accelerator = begun.run, begun.accelerator
    # Stage 1 may be stored in half precision; codes are chosen in fp32.
    vae = checkpoints.load(run.vae or run.prior or run.init or "").vae.float()
    condition = _condition(run, begun.facts)
    classes = begun.facts.classes if condition == "class" else ()
    words = None
    if condition == "text":
        words = make_tokenizer(run, accelerator, begun.source, own_vocabulary(run.init))
    torch.manual_seed(run.seed)  # the same initial weights on every rank
    fields = run.model if run.condition_dropout == 0 else {**run.model, "null_condition": True}
    transformer = init_transformer(run.init, condition, classes, words, fields, vae.config)
    config = transformer.config
    prior = open_prior(run.prior, vae, config)
    if config.condition == "codes" and prior is None:
        say("no prior was named: the result will be half a model; hqtvae convert joins the halves")
    whole = HQTVAEConfig(vae=vae.config, transformer=config)
    begun = in_memory(begun, whole)
    data = _conditions(run, config)
    stored, held_out_stored = open_stored(begun, vae)
    loader, stream = open_data(begun, vae.config.resolution, data, stored)
    settings = make_stage2_settings(run, stream.batches_per_epoch, begun.more)
    transformer.set_activation_checkpointing(begun.run.activation_checkpointing)
    task = Stage2(
        accelerator,
        vae,
        transformer,
        settings,
        tokenizer_file=None if words is None else words.file,
        prior=prior,
        held_out=open_held_out(begun, vae.config.resolution, data, held_out_stored),
        stored=None if stored is None else stored.content,
        classes=classes,
    )
    if task.tokenizer is not None and accelerator.is_main_process:
        lost = survey_captions(begun.source, data["caption"], task.tokenizer)
        if lost:
            warnings.warn(lost.describe("captions"), stacklevel=2)
    return go(begun, whole, task, loader, stream, settings.steps, telling or Telling())


def _condition(run: Stage2Run, facts: Facts) -> Condition:
    """What pictures are drawn from: as the run says, or its model, or what the data have."""
    named: Condition | None = run.condition or run.model.get("condition")
    return named or facts.condition


def _conditions(run: Stage2Run, config: TransformerConfig) -> dict[str, Any]:
    """What a set's samples have beside their pictures, as the data sets take it."""
    if config.condition == "class":
        return {"condition": "class", "num_classes": config.num_classes}
    if config.condition == "text":
        return {"condition": "text", "caption": caption_template(run.caption)}
    return {"condition": "none"}


def make_stage2_settings(run: Stage2Run, per_epoch: float, more: float = 0.0) -> Stage2Settings:
    return Stage2Settings(
        steps=run.total_steps(per_epoch, more),
        warmup_steps=run.warmup_steps(per_epoch, more),
        learning_rate=run.learning_rate,
        weight_decay=run.weight_decay,
        clip=run.clip,
        soft_labels=run.tau,
        condition_dropout=run.condition_dropout,
        weights=Stage2Weights(run.level_weights, run.image_weight, run.text_weight),
        sample_prompts=run.sample_prompts,
        sample_top_k=run.sample_top_k,
        sample_temperature=run.sample_temperature,
        seed=run.seed,
    )


# ---------------------------------------------------------------------------------------------------- what both share


def open_data(
    begun: Started[Any], resolution: int, condition: dict[str, Any], stored: Stored | None = None
) -> tuple[DataLoader[Any], PictureStream]:
    """The training set. ``stored``: what its samples have in place of pixels."""
    run, accelerator = begun.run, begun.accelerator
    crops = (run.crops, 1.0)
    dataset = PictureDataset(
        begun.training, resolution, flip=run.flip, crops=crops, seed=run.seed, stored=stored, **condition
    )
    share_of_batch(run, accelerator)
    ranks = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    stream = PictureStream(len(dataset), run.batch_size, seed=run.seed, **ranks)
    return make_loader(dataset, stream, workers=run.workers, device=accelerator.device), stream


def share_of_batch(run: RunConfig, accelerator: Accelerator) -> int:
    """Pictures of a process's micro-batch."""
    share = run.batch_size // (accelerator.num_processes * run.accumulate)
    if share * accelerator.num_processes * run.accumulate != run.batch_size:
        raise ConfigError(
            f"batch_size: expected a multiple of {accelerator.num_processes} processes x {run.accumulate}"
            f" micro-batches; got {run.batch_size}"
        )
    return share


def open_stored(begun: Started[Stage2Run], vae: HQVAE) -> tuple[Stored | None, Stored | None]:
    """What the run reads in the place of the training and of the held-out pictures; None for pixels."""
    run, held_out = begun.run, begun.held_out
    whole = _open_stored(run, begun.accelerator, begun.source, vae)
    stored = None if whole is None else part_of(whole, begun.training, begun.source)
    if held_out is None:
        return stored, None
    if run.validation:
        return stored, codes_as_held_out(held_out, begun.source, vae, soft_labels=run.tau is not None)
    return stored, None if whole is None else part_of(whole, held_out, begun.source)


def _open_stored(
    run: Stage2Run, accelerator: Accelerator, source: Source, vae: HQVAE
) -> CodeCache | StoredCodes | None:
    """Codes that are the run's data, or a code cache, which is made with what this run needs of each picture."""
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
        say(f"codes in {file}: {stored.broken:,} of {len(source):,} pictures are broken")
    return stored


def open_held_out(
    begun: Started[Any], resolution: int, condition: dict[str, Any], stored: Stored | None = None
) -> HeldOut | None:
    """The held-out pictures, or None without any."""
    run, accelerator = begun.run, begun.accelerator
    if begun.held_out is None:
        return None
    return HeldOut(
        PictureDataset(begun.held_out, resolution, training=False, stored=stored, **condition),
        limit=run.validation_pictures,
        batch_size=share_of_batch(run, accelerator),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        workers=run.workers,
    )


def go(
    begun: Started[Any],
    config: HQTVAEConfig,
    task: Any,
    loader: DataLoader[Any],
    stream: PictureStream,
    steps: int,
    telling: Telling,
) -> Path | None:
    """The loop, from the last checkpoint on. Returns the finished model's folder; None if it was stopped before."""
    run, accelerator, directory = begun.run, begun.accelerator, Path(begun.run.out)
    loop = LoopSettings(
        steps,
        log_every=run.log_every,
        **intervals(run, steps),
        keep=run.keep,
        stop_after=run.stop_after,
        stop_after_minutes=run.stop_after_minutes,
        title=run.title,
        fresh=run.init is None,
        restarts=getattr(run, "restart_unused", False),
    )
    fingerprint = begun.training.fingerprint()
    runner = Runner(
        accelerator,
        task,
        loader,
        stream,
        directory,
        loop,
        accumulate=run.accumulate,
        fingerprint=fingerprint,
        again=telling.again,
        report=partial(telling.page, run),
    )
    if accelerator.is_main_process:
        telling.begin(begun, config, steps, stream.epochs(steps * run.batch_size))
    try:
        runner.resume()
        if accelerator.is_main_process:
            begun.take_changes()
        finished = runner.run()
    except BaseException:
        with suppress(Exception):  # a log that cannot be written is no news, and would hide the reason
            runner.close()
        raise
    runner.close()
    if finished and accelerator.is_main_process:
        telling.end(run)
    accelerator.wait_for_everyone()  # one that still talks to others that have gone may fail at its end
    return directory / MODEL if finished else None


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
