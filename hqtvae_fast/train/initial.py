"""Fine-tuning: a run that begins with a checkpoint, its architecture and its weights, in place of random ones.

What the data have of their own is new: classes and tokens that the checkpoint does not know by name, or the whole
prefix, where pictures are drawn from something else. Everything behind the prefix, the body and the head, is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.checkpoint_config import read_config
from hqtvae_fast.classes import Names, listed
from hqtvae_fast.config import Condition, ConfigError, HQTVAEConfig, TransformerConfig, VAEConfig
from hqtvae_fast.fields import read
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.text import open_tokenizer
from hqtvae_fast.train.data import PictureDataset, Source
from hqtvae_fast.train.sizing.models import make_transformer_config, make_vae_config, with_changes
from hqtvae_fast.train.tokenizer import Vocabulary
from hqtvae_fast.train.validation import HeldOut, validate_vae
from hqtvae_fast.train.words import say

PREFIX = "prefix."
TABLES = ("prefix.embedding.weight", "prefix.head.weight")
"""Of the prefix: a row for each class or token."""
ALL = "all weights of stage 2"
KEPT_FROM = 20.0
"""dB, of a stage 1 that is kept. The demo gives 23.9 on emoji that it never saw, where training it on with 640 pictures
costs 0.9 on held-out ones; and 15.7 on drawn shapes and 13.6 on photographs, which are hardly to be recognised: the
same training gains 4.2 on held-out shapes and 6.8 on the photographs themselves."""
LOOKED_AT = 64  # pictures

Say = Callable[[str], None]
Rows = tuple[list[int], list[int]] | None
"""Of a new table and of the one that they are taken from; None: all of them, as they are."""
NONE: Rows = ([], [])


# ------------------------------------------------------------------------------------------------------- stage 1


def init_vae(path: str | None, changes: Mapping[str, Any]) -> tuple[VAEConfig, HQVAE]:
    """The HQ-VAE that a run begins with, in fp32, and its configuration: of the checkpoint at ``path``, with a run's
    ``model`` fields on top as :func:`with_changes` allows; without one, the run's own and random weights."""
    if path is None:
        config = make_vae_config(dict(changes))
        return config, HQVAE(config)
    held = checkpoints.load(path).vae
    config = with_changes(held.config, changes, path)
    vae = HQVAE(config)
    vae.load_state_dict(held.state_dict())  # converts half precision
    return config, vae


def keeps_vae(accelerator: Accelerator, vae: HQVAE, source: Source) -> bool:
    """Whether a checkpoint's stage 1 does as it is for other pictures, those of ``source``, of which it looks at 64.

    It says how well they are reconstructed. Every process must call it.
    """
    dataset, ranks = PictureDataset(source, vae.config.resolution, training=False), accelerator.num_processes
    shown = HeldOut(dataset, limit=LOOKED_AT, batch_size=16, rank=accelerator.process_index, world=ranks)
    mode = vae.training
    quality = validate_vae(accelerator, vae.to(accelerator.device).eval(), shown)["psnr"]
    vae.train(mode)
    keeps = quality >= KEPT_FROM
    what = "kept as it is" if keeps else f"trained on, as that is below {KEPT_FROM:.0f} dB"
    say(f"stage 1 reconstructs these pictures with {quality:.1f} dB: {what}")
    return keeps


# ------------------------------------------------------------------------------------------------------- stage 2


def init_transformer(
    path: str | None,
    condition: Condition,
    classes: Names,
    tokenizer: Vocabulary | None,
    changes: Mapping[str, Any],
    vae: VAEConfig,
    *,
    say: Say = say,
) -> HQTransformer:
    """The HQ-Transformer of the checkpoint at ``path``, in fp32, made to draw from what the data have; without one, the
    run's own and random weights.

    condition: what pictures are drawn from. classes: their names by label, None for a label without pictures, () where
    nobody said them. tokenizer: the words of a text model. changes: a run's ``model``, which may ask for more classes
    than there are, and otherwise for what :func:`with_changes` allows. vae: stage 1, whose codes are drawn.

    All weights are taken, but for rows of classes and tokens that the checkpoint does not know by name and for a prefix
    of another kind: those are drawn as usual. ``say`` is given a line on that. ConfigError where the checkpoint has no
    stage 2 on such codes, or a field needs other weights.
    """
    data = _of_data(condition, classes, tokenizer, changes)
    null = read(bool, changes.get("null_condition", False), "model.null_condition")
    if path is None:
        return HQTransformer(make_transformer_config({**changes, **data}, vae))
    checkpoint = checkpoints.load(path)
    found = _stage2(checkpoint, condition, path)
    same_kind = condition == found.config.condition
    data["null_condition"] = null or (same_kind and found.config.null_condition)
    config = with_changes(replace(found.config, **data), {**changes, **data}, path)
    try:
        HQTVAEConfig(vae=vae, transformer=config)
    except ConfigError as error:
        raise ConfigError(f"init: expected stage 2 on codes of the run's stage 1; {path}: {error}") from None
    model = HQTransformer(config)
    rows, news = _known_rows(checkpoint, found.config, config, classes, tokenizer)
    _take(model, found, rows, same_kind=same_kind)
    if config.null_condition and not (same_kind and found.config.null_condition):
        news += "; the null condition is new"
    say(f"init {path}: {news}")
    return model


def own_condition(init: str | None) -> Condition | None:
    """What the checkpoint draws from; None without one, or where it has stage 1 alone."""
    stage2 = None if init is None else read_config(init).transformer
    return None if stage2 is None else stage2.condition


def own_vocabulary(init: str | None) -> Vocabulary | None:
    """The words that the checkpoint reads; None where it reads none, or came without its tokenizer."""
    if init is None or own_condition(init) != "text":
        return None
    stage2, file = read_config(init).transformer, checkpoints.resolve(init) / checkpoints.TOKENIZER_FILE
    return Vocabulary(file, stage2.prefix_vocab_size, stage2.prefix_length) if stage2 and file.is_file() else None


def _stage2(checkpoint: checkpoints.Checkpoint, condition: Condition, path: str) -> HQTransformer:
    refines = condition == "codes"
    found = checkpoint.refiner if refines and checkpoint.refiner is not None else checkpoint.transformer
    if found is None:
        raise ConfigError(f"init: expected a checkpoint with stage 2; got {path}, with stage 1 only")
    if refines != (found.config.condition == "codes"):
        wanted, got = ("a refiner", "none") if refines else ("a model that draws top codes", "a refiner alone")
        raise ConfigError(f"init: expected a checkpoint with {wanted}; got {path}, with {got}")
    return found


def _of_data(
    condition: Condition, classes: Names, tokenizer: Vocabulary | None, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of the transformer that the data decide. A run's ``model`` may have more rows than they need."""
    if changes.get("condition", condition) != condition:
        raise ConfigError(f"model.condition: expected {condition!r}, as the data have; got {changes['condition']!r}")
    least: dict[str, int] = {}
    if condition == "class" and (classes or "num_classes" in changes):
        least = {"num_classes": max(len(classes), 1)}
    elif condition == "text":
        if tokenizer is None:
            raise ConfigError("condition: expected a tokenizer with 'text'; got none")
        least = tokenizer.fields
    for name, needed in least.items():
        given = changes.get(name, needed)
        if read(int, given, f"model.{name}") < needed:
            raise ConfigError(f"model.{name}: expected {needed} or more, for the data; got {given}")
    return {"condition": condition, **{name: changes.get(name, needed) for name, needed in least.items()}}


def _known_rows(
    checkpoint: checkpoints.Checkpoint,
    held: TransformerConfig,
    config: TransformerConfig,
    classes: Names,
    tokenizer: Vocabulary | None,
) -> tuple[Rows, str]:
    """Rows of the prefix's tables that the checkpoint has, and a sentence on what is taken and what is new."""
    if held.condition != config.condition:
        kind = f"{config.num_classes:,} classes" if config.condition == "class" else config.condition
        return NONE, f"stage 2 but for its prefix, which is new: {kind} in place of {held.condition}"
    if config.condition == "class":
        return _class_rows(checkpoint.config.id2label, held.num_classes, classes, config.num_classes)
    if tokenizer is not None and config.condition == "text":
        return _token_rows(checkpoint.tokenizer_file, held, tokenizer)
    return None, ALL


def _class_rows(held: Names, had: int, names: Names, count: int) -> tuple[Rows, str]:
    """By name; where one side has none, by label, if there are as many of them."""
    if not (held and names):
        if had != count:
            return NONE, f"stage 2; its {count:,} classes are new, in place of {had:,} without names"
        return None, f"{ALL}, classes by their labels"
    places = {name: label for label, name in reversed(list(enumerate(held))) if name is not None}
    pairs = [(label, places[name]) for label, name in enumerate(names) if name in places]
    known = [name for name in names if name in places]
    new = [name for name in names if name is not None and name not in places]
    said = f"; classes by name: {listed(known)}" if known else ""
    said += f"; {'classes ' if not known else ''}new: {listed(new)}" if new else ""
    return ([label for label, _ in pairs], [place for _, place in pairs]), f"stage 2{said}"


def _token_rows(file: Path | None, held: TransformerConfig, tokenizer: Vocabulary) -> tuple[Rows, str]:
    """By spelling, in the checkpoint's own tokenizer ``file``."""
    own = file is not None and file.read_bytes() == tokenizer.file.read_bytes()
    if own and tokenizer.size == held.prefix_vocab_size:
        longer = f"; its prefix has {tokenizer.length} positions in place of {held.prefix_length}"
        return None, ALL if tokenizer.length == held.prefix_length else ALL + longer
    ids, new = {} if file is None else open_tokenizer(file).get_vocab(), tokenizer.tokens()
    pairs = sorted((index, ids[token]) for token, index in new.items() if token in ids)
    rows = [index for index, _ in pairs], [place for _, place in pairs]
    return rows, f"stage 2, with {len(pairs):,} of {len(new):,} tokens by spelling; the others are new"


@torch.no_grad()
def _take(model: HQTransformer, found: HQTransformer, rows: Rows, *, same_kind: bool) -> None:
    """Copy values of the same names; of the prefix those ``rows`` of its tables, and none if it is of another kind."""
    own, other = model.state_dict(), found.state_dict()
    for name, value in own.items():
        if not name.startswith(PREFIX):
            value.copy_(other[name])
        elif same_kind and name in TABLES and rows is not None:
            value[rows[0]] = other[name][rows[1]].to(value.dtype)
        elif same_kind:  # positions may be more or fewer
            count = min(len(value), len(other[name]))
            value[:count] = other[name][:count].to(value.dtype)
    if same_kind and model.config.null_condition and found.config.null_condition:
        value, taken = own[TABLES[0]], other[TABLES[0]]
        value[model.config.null_index] = taken[found.config.null_index].to(value.dtype)
