"""What a checkpoint directory is and the configuration that it holds, told without torch and without its weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from hqtvae_fast.config import CheckpointError, ConfigError, HQTVAEConfig, from_dict
from hqtvae_fast.fields import shown
from hqtvae_fast.files import first_line, read_text
from hqtvae_fast.files.kinds import refuse_others
from hqtvae_fast.released.config import parse_config
from hqtvae_fast.run_folder import is_run, model_of

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
RELEASED_CONFIG_FILE = "config.yaml"
RELEASED_STATE_FILES = ("ckpt/last.ckpt", "ckpt/state_dict.ckpt")
SMALL_FILES = (CONFIG_FILE, RELEASED_CONFIG_FILE, TOKENIZER_FILE)
ALL_FILES = (*SMALL_FILES, MODEL_FILE, *RELEASED_STATE_FILES)
DEMO = "demo"
"""The name of the small model that comes with the package."""
DEMO_DIRECTORY = Path(__file__).parent / "assets" / "demo"
FORMAT = "hqtvae_fast"
FORMAT_VERSION = 1

_CONDITIONS = {"class": "class labels", "text": "descriptions", "none": "nothing in particular", "codes": "top codes"}


def read_config(path: str | os.PathLike[str], refiner: str | os.PathLike[str] | None = None) -> HQTVAEConfig:
    """The configuration of a checkpoint, and of the one that a refiner makes of it."""
    config, _ = find_config(resolve(path, SMALL_FILES))
    return config if refiner is None else pair(config, find_config(resolve(refiner, SMALL_FILES))[0])


def check_tokenizer(path: str | os.PathLike[str], config: HQTVAEConfig) -> None:
    """ValueError where the checkpoint ``path`` of a text model comes without its tokenizer."""
    text = config.transformer is not None and config.transformer.condition == "text"
    if text and not (resolve(path, SMALL_FILES) / TOKENIZER_FILE).is_file():
        raise ValueError(f"prompt: {missing_tokenizer(config)}")


def find_config(directory: Path) -> tuple[HQTVAEConfig, bool]:
    """The configuration, and whether it is in our format."""
    if (directory / CONFIG_FILE).is_file():
        return _read_config(directory / CONFIG_FILE, json.loads, _native_config), True
    if (directory / RELEASED_CONFIG_FILE).is_file():
        return _read_config(directory / RELEASED_CONFIG_FILE, yaml.safe_load, parse_config), False
    expected = f"expected {CONFIG_FILE} or {RELEASED_CONFIG_FILE}, found neither"
    raise CheckpointError(f"{directory}: {expected}{_checkpoint_above(directory)}")


def _has_config(directory: Path) -> bool:
    return any((directory / name).is_file() for name in (CONFIG_FILE, RELEASED_CONFIG_FILE))


def _checkpoint_above(path: Path) -> str:
    """For a path inside of a checkpoint's directory, or of a run's: that directory, as a hint."""
    for folder in (path.parent, path.parent.parent):
        if _has_config(folder) or is_run(folder):
            return f": give {folder}"
    return ""


def pair(prior: HQTVAEConfig, refiner: HQTVAEConfig) -> HQTVAEConfig:
    """That of the two of a globally conditioned model together."""
    try:
        return replace(prior, refiner=refiner.transformer)
    except ConfigError as error:
        raise CheckpointError(f"these two checkpoints make no pair: {error}") from error


def resolve(path: str | os.PathLike[str], files: Sequence[str] = ALL_FILES, **hub: Any) -> Path:
    """The local directory of a checkpoint: a path, ``demo``, or a Hub name ``owner/name``; a local path goes first.

    A training run's folder stands for its model, or for its newest checkpoint while there is none; a warning says so.
    ``files``: what is fetched of a repository. ``hub``: revision, token, cache_dir and local_files_only, as
    ``huggingface_hub.snapshot_download`` takes them.
    """
    directory = Path(path)
    if directory.is_dir():
        return directory if _has_config(directory) or not is_run(directory) else model_of(directory)
    if str(path) == DEMO:
        return DEMO_DIRECTORY
    if directory.exists():
        raise CheckpointError(f"{directory}: expected a checkpoint directory; got a file{_checkpoint_above(directory)}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(path)):
        raise CheckpointError(f"{path}: no such directory (and neither {DEMO!r} nor a Hub name like owner/name)")
    return _download(str(path), files, hub)


def _download(name: str, files: Sequence[str], hub: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download  # a second of imports that a local path does not need
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files), **hub))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name}: no such directory, and the Hub gave none by that name ({reason})") from error


def _read_config(file: Path, parse: Callable[[str], Any], convert: Callable[[Any], HQTVAEConfig]) -> HQTVAEConfig:
    refuse_others(file, "a configuration")
    try:
        data = parse(read_text(file))
    except Exception as error:  # what a parser raises on text that is none of its own is no fixed list
        raise CheckpointError(f"{file}: cannot be read ({first_line(error)})") from error
    try:
        return convert(data)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _native_config(data: Any) -> HQTVAEConfig:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(
            f"format: expected {FORMAT!r}; got {shown(data.get('format') if isinstance(data, dict) else data)}"
        )
    if type(data.get("version")) is not int or data["version"] != FORMAT_VERSION:
        raise ConfigError(f"version: expected {FORMAT_VERSION}; got {shown(data.get('version'))}")
    return from_dict({key: value for key, value in data.items() if key not in ("format", "version")})


def missing_tokenizer(config: HQTVAEConfig) -> str:
    """What a text model without its tokenizer needs; released directories come without."""
    stage2 = config.transformer
    size = "" if stage2 is None else f", of at most {stage2.prefix_vocab_size:,} tokens"
    return (
        f"expected a {TOKENIZER_FILE} beside the checkpoint's configuration, to read words with; found none. It must be"
        f" the one that the model was trained with{size}. Of a released model: hqtvae convert CHECKPOINT OUT_DIR"
        " --tokenizer hqvae/tokenizers/pretrained, a folder of the released code (github.com/kakaobrain/hqtransformer)"
    )


def condition_words(config: HQTVAEConfig) -> str:
    """What a model draws pictures from."""
    classes = config.classes
    if classes.names:
        return f"{len(classes.trained):,} class{'es' * (len(classes.trained) > 1)} ({classes.listed()})"
    return (
        "nothing: it codes and decodes only"
        if config.transformer is None
        else _CONDITIONS[config.transformer.condition]
    )


def describe(config: HQTVAEConfig, sizes: Mapping[str, int]) -> str:
    """What a model makes, how large it is and of what codes, in one line; ``sizes``: parameters of each part."""
    vae, stage2 = config.vae, config.transformer
    pictures = f"{vae.resolution}x{vae.resolution} pictures"
    made = f"codes {pictures} and back, and does not draw"
    if stage2 is not None:
        made = f"draws {pictures} from {condition_words(config)}"
    levels = zip(vae.level_sides, vae.codebook_sizes, strict=True)
    maps = " + ".join(f"{side}x{side} of {size:,}" for side, size in levels)
    parts = ", ".join(f"{name} {size / 1e6:,.1f} M" for name, size in sizes.items())
    return f"{made}; {sum(sizes.values()) / 1e6:,.1f} M parameters ({parts}); codes {maps}"
