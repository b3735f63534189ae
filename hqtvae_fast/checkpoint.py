"""Checkpoint directories: released ones and our own, opened alike; ours written.

Ours: ``config.json`` and ``model.safetensors`` (keys ``vae.``, ``transformer.``, ``refiner.``), with ``tokenizer.json``
for text models. Released: ``config.yaml`` and ``ckpt/last.ckpt`` or ``ckpt/state_dict.ckpt``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from hqtvae_fast import released
from hqtvae_fast.config import ConfigError, HQTVAEConfig, TransformerConfig, from_dict, to_dict
from hqtvae_fast.engine.work import picture_flops
from hqtvae_fast.fields import shown
from hqtvae_fast.files import read_text, sync_files, sync_folder
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.tensor_files import CheckpointError as CheckpointError
from hqtvae_fast.tensor_files import StateDict, first_line, read_state, refuse_others
from hqtvae_fast.threads import threads_for

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
RELEASED_CONFIG_FILE = "config.yaml"
RELEASED_STATE_FILES = ("ckpt/last.ckpt", "ckpt/state_dict.ckpt")
DEMO = "demo"
"""The name of the small model that comes with the package."""
DEMO_DIRECTORY = Path(__file__).parent / "assets" / "demo"
FORMAT = "hqtvae_fast"
FORMAT_VERSION = 1
MAX_PROBLEMS_SHOWN, KEYS_SHOWN = 5, 3


@dataclass
class Checkpoint:
    """A model in memory. ``transformer`` is None where the directory has stage 1 only."""

    config: HQTVAEConfig
    vae: HQVAE
    transformer: HQTransformer | None
    refiner: HQTransformer | None = None
    tokenizer_file: Path | None = None

    def modules(self) -> dict[str, nn.Module]:
        """The parts that exist, by the prefix of their keys."""
        parts = {"vae": self.vae, "transformer": self.transformer, "refiner": self.refiner}
        return {name: module for name, module in parts.items() if module is not None}

    def summary(self) -> str:
        """What it makes, of what, and how large its parts are, in one line."""
        vae, stage2 = self.config.vae, self.config.transformer
        condition = "codes and back only" if stage2 is None else f"condition: {stage2.condition}"
        levels = zip(vae.level_sides, vae.codebook_sizes, strict=True)
        maps = " + ".join(f"{side}x{side} of {size:,}" for side, size in levels)
        parts = self.modules().items()
        sizes = ", ".join(f"{name} {sum(p.numel() for p in part.parameters()) / 1e6:,.1f} M" for name, part in parts)
        return f"{vae.resolution}x{vae.resolution} pictures; {condition}; codes {maps}; {sizes}"


def load(path: str | os.PathLike[str], **hub: Any) -> Checkpoint:
    """Open a released directory, one of ours, or a Hub repository (``owner/name``) of either kind; ``hub``: how that
    one is fetched, as :func:`resolve` takes it."""
    directory = resolve(path, **hub)
    config, native = _find_config(directory)
    with threads_for(picture_flops(config)):
        checkpoint = _load_native(directory, config) if native else _load_released(directory, config)
    tokenizer = directory / TOKENIZER_FILE
    checkpoint.tokenizer_file = tokenizer if tokenizer.is_file() else None
    return checkpoint


def _find_config(directory: Path) -> tuple[HQTVAEConfig, bool]:
    """The configuration, and whether it is in our format."""
    if (directory / CONFIG_FILE).is_file():
        return _read_config(directory / CONFIG_FILE, json.loads, _native_config), True
    if (directory / RELEASED_CONFIG_FILE).is_file():
        return _read_config(directory / RELEASED_CONFIG_FILE, yaml.safe_load, released.parse_config), False
    expected = f"expected {CONFIG_FILE} or {RELEASED_CONFIG_FILE}, found neither"
    raise CheckpointError(f"{directory}: {expected}{_checkpoint_above(directory)}")


def _checkpoint_above(path: Path) -> str:
    """For a path inside of a checkpoint's directory: that directory, as a hint."""
    for folder in (path.parent, path.parent.parent):
        if any((folder / name).is_file() for name in (CONFIG_FILE, RELEASED_CONFIG_FILE)):
            return f": give {folder}"
    return ""


def with_refiner(prior: Checkpoint, refiner: Checkpoint) -> Checkpoint:
    """One checkpoint of the two of a globally conditioned model: top codes from the first, bottom from the second."""
    try:
        config = replace(prior.config, refiner=refiner.config.transformer)
    except ConfigError as error:
        raise CheckpointError(f"these two checkpoints make no pair: {error}") from error
    return replace(prior, config=config, refiner=refiner.transformer)


def missing_tokenizer(config: HQTVAEConfig) -> str:
    """What a text model without its tokenizer needs; released directories come without."""
    stage2 = config.transformer
    size = "" if stage2 is None else f", of at most {stage2.prefix_vocab_size:,} tokens"
    return (
        f"expected a {TOKENIZER_FILE} beside the checkpoint's configuration, to read words with; found none. It must be"
        f" the one that the model was trained with{size}, as the tokenizers library saves it (tokenizer.save): copy it"
        " there. Another tokenizer gives other words their meaning"
    )


def resolve(path: str | os.PathLike[str], **hub: Any) -> Path:
    """The local directory of a checkpoint: a path, ``demo``, or a Hub name ``owner/name``; a local path goes first.

    ``hub``: revision, token, cache_dir and local_files_only, as ``huggingface_hub.snapshot_download`` takes them.
    """
    directory = Path(path)
    if directory.is_dir():
        return directory
    if str(path) == DEMO:
        return DEMO_DIRECTORY
    if directory.exists():
        raise CheckpointError(f"{directory}: expected a checkpoint directory; got a file{_checkpoint_above(directory)}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(path)):
        raise CheckpointError(f"{path}: no such directory (and neither {DEMO!r} nor a Hub name like owner/name)")
    return _download(str(path), hub)


def _download(name: str, hub: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download  # a second of imports that a local path does not need
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = [CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, RELEASED_CONFIG_FILE, *RELEASED_STATE_FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **hub))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name}: no such directory, and the Hub gave none by that name ({reason})") from error


# -------------------------------------------------------------------------------------------------------------- load


def build(config: HQTVAEConfig) -> Checkpoint:
    """The modules of a configuration, with freshly initialised weights (on the current default device)."""
    transformer = None if config.transformer is None else HQTransformer(config.transformer)
    refiner = None if config.refiner is None else HQTransformer(config.refiner)
    return Checkpoint(config, HQVAE(config.vae), transformer, refiner)


def _build_empty(config: HQTVAEConfig) -> Checkpoint:
    with without_values():  # every tensor is assigned from the file
        return build(config)


def _load_native(directory: Path, config: HQTVAEConfig) -> Checkpoint:
    file = directory / MODEL_FILE
    state, checkpoint = read_state(file), _build_empty(config)
    expected = {
        f"{prefix}.{key}": released.Source(((f"{prefix}.{key}", tuple(value.shape)),))
        for prefix, module in checkpoint.modules().items()
        for key, value in module.state_dict().items()
    }
    _assign_all(checkpoint, _collect(file, state, expected))
    return checkpoint


def _native_config(data: Any) -> HQTVAEConfig:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(
            f"format: expected {FORMAT!r}; got {shown(data.get('format') if isinstance(data, dict) else data)}"
        )
    if type(data.get("version")) is not int or data["version"] != FORMAT_VERSION:
        raise ConfigError(f"version: expected {FORMAT_VERSION}; got {shown(data.get('version'))}")
    return from_dict({key: value for key, value in data.items() if key not in ("format", "version")})


def _load_released(directory: Path, config: HQTVAEConfig) -> Checkpoint:
    files = [directory / name for name in RELEASED_STATE_FILES if (directory / name).is_file()]
    if not files:
        raise CheckpointError(f"{directory}: expected {' or '.join(RELEASED_STATE_FILES)}, found neither")
    state, checkpoint = released.plain_keys(read_state(files[0]), files[0]), _build_empty(config)
    parts = {"stage1.": ("vae", checkpoint.vae), "stage2.": ("transformer", checkpoint.transformer)}
    expected = {
        f"{name}.{key}": source
        for prefix, (name, module) in parts.items()
        if module is not None
        for key, source in released.sources(prefix, module).items()
    }
    _assign_all(checkpoint, _collect(files[0], state, expected))
    return checkpoint


def load_stage2_state(config: TransformerConfig, state: StateDict, origin: str) -> HQTransformer:
    """A transformer from the ``state_dict()`` of a released stage-2 module in memory."""
    with without_values():
        transformer = HQTransformer(config)
    _assign(transformer, _collect(Path(origin), state, released.sources("", transformer)))
    return transformer


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


def _collect(file: Path, state: StateDict, expected: dict[str, released.Source]) -> StateDict:
    """Our parameters from the file's tensors; raises :class:`CheckpointError` listing what is missing or misshapen."""
    wanted = {key: shape for source in expected.values() for key, shape in source.parts}
    problems = []
    for key, shape in wanted.items():
        if key not in state:
            problems.append(f"{key}: expected shape {list(shape)}, found no such key")
        elif tuple(state[key].shape) != shape:
            problems.append(f"{key}: expected shape {list(shape)}, found {list(state[key].shape)}")
        elif not bool(torch.isfinite(state[key]).all()):
            problems.append(f"{key}: expected finite values, found NaN or infinity")
    others = [key for key in state if key not in wanted]
    if any(key not in state for key in wanted):
        problems.insert(0, f"its {len(state):,} keys are such as {', '.join((others or list(state))[:KEYS_SHOWN])}")
    problems += [f"{key}: unexpected key, shape {list(state[key].shape)}" for key in others]
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS_SHOWN} more" if len(problems) > MAX_PROBLEMS_SHOWN else ""
        raise CheckpointError(f"{file}: {'; '.join(problems[:MAX_PROBLEMS_SHOWN])}{more}")
    return {name: _join(state, source) for name, source in expected.items()}


def _join(state: StateDict, source: released.Source) -> Tensor:
    parts = [state[key] for key, _ in source.parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _assign_all(checkpoint: Checkpoint, values: StateDict) -> None:
    for prefix, module in checkpoint.modules().items():
        start = len(prefix) + 1
        _assign(module, {key[start:]: value for key, value in values.items() if key.startswith(f"{prefix}.")})


def _assign(module: nn.Module, values: StateDict) -> None:
    """Give a module made on the meta device its tensors, each in the module's own shape."""
    own = {}
    for key, empty in module.state_dict().items():
        own[key] = values[key].reshape(-1, *empty.shape[1:])[: len(empty)].reshape(empty.shape)
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    module.load_state_dict(own, assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trainable)


# -------------------------------------------------------------------------------------------------------------- save


def save(checkpoint: Checkpoint, directory: str | os.PathLike[str]) -> Path:
    """Write our format. All files are complete before the first takes its name, so a failure leaves no half of one."""
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target}: expected a directory to write to; got a file")
    state = {
        f"{prefix}.{key}": value.detach().cpu().contiguous()
        for prefix, module in checkpoint.modules().items()
        for key, value in module.state_dict().items()
    }
    config = {"format": FORMAT, "version": FORMAT_VERSION, **to_dict(checkpoint.config)}
    with _staged(target) as stage:
        safetensors.torch.save_file(state, stage / MODEL_FILE, metadata={"format": "pt"})
        (stage / MODEL_FILE).chmod(
            stage.stat().st_mode & 0o666
        )  # as any new file; safetensors makes it the owner's only
        if checkpoint.tokenizer_file is not None:
            shutil.copyfile(checkpoint.tokenizer_file, stage / TOKENIZER_FILE)
        (stage / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return target


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A hidden folder inside ``target`` whose files move into it at the end; removed, come what may."""
    made = not target.exists()
    stage = target / f".saving-{os.getpid()}"
    done = False
    try:
        stage.mkdir(parents=True)
        yield stage
        sync_files(stage)
        for file in sorted(stage.iterdir(), reverse=True):  # config.json, which makes it a checkpoint, goes last
            os.replace(file, target / file.name)
        sync_folder(target)
        done = True
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target}: cannot be written ({first_line(error)})") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if made and not done:
            shutil.rmtree(target, ignore_errors=True)
