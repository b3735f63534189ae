"""Checkpoint directories: released ones and our own, opened alike; ours written.

Ours: ``config.json`` and ``model.safetensors`` (keys ``vae.``, ``transformer.``, ``refiner.``), with ``tokenizer.json``
for text models; a quantized matrix is stored in one byte a value, int8 or fp8, with ``.weight_scale`` beside it; of a
calibrated convolution there is ``.input_span``, fp32 [2].
Released: ``config.yaml`` and ``ckpt/last.ckpt`` or ``ckpt/state_dict.ckpt``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hqtvae_fast.checkpoint_config import (
    CONFIG_FILE,
    DEMO_DIRECTORY,
    FORMAT,
    FORMAT_VERSION,
    MODEL_FILE,
    RELEASED_STATE_FILES,
    TOKENIZER_FILE,
    describe,
    find_config,
    missing_tokenizer,
    pair,
    resolve,
)
from hqtvae_fast.config import CheckpointError, HQTVAEConfig, TransformerConfig, VAEConfig, to_dict
from hqtvae_fast.files import first_line, json_text, sync_files, sync_folder
from hqtvae_fast.files.tensors import StateDict, is_finite, read_state
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.calibration import roundable
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.model.linear import Linear, QuantizedWeight, quantized_linears
from hqtvae_fast.ops.kernels.skinny_linear.reference import QUANTIZED
from hqtvae_fast.released.keys import Source, sources
from hqtvae_fast.released.state import plain_keys
from hqtvae_fast.threads import picture_flops, threads_for

__all__ = [
    "CONFIG_FILE",
    "DEMO_DIRECTORY",
    "MODEL_FILE",
    "TOKENIZER_FILE",
    "Checkpoint",
    "CheckpointError",
    "build",
    "load",
    "load_stage1_state",
    "load_stage2_state",
    "missing_tokenizer",
    "resolve",
    "save",
    "with_refiner",
]

MAX_PROBLEMS_SHOWN, KEYS_SHOWN = 5, 3
WEIGHT, SCALE, SPAN = ".weight", ".weight_scale", ".input_span"


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

    @property
    def quantization(self) -> str | None:
        """What its matrices are rounded to, "int8" or "fp8", or None."""
        kinds = {weight.kind for module in self.modules().values() for weight in quantized_linears(module).values()}
        return min(kinds, default=None)

    def sizes(self) -> dict[str, int]:
        """Parameters of each part; codebooks, which are buffers, are none."""
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self.modules().items()}

    def summary(self) -> str:
        """What it makes, how large it is and of what codes, in one line."""
        return describe(self.config, self.sizes())


def load(path: str | os.PathLike[str], **hub: Any) -> Checkpoint:
    """Open a released directory, one of ours, or a Hub repository (``owner/name``) of either kind; ``hub``: how that
    one is fetched, as :func:`resolve` takes it."""
    directory = resolve(path, **hub)
    config, native = find_config(directory)
    with threads_for(picture_flops(config)):
        checkpoint = _load_native(directory, config) if native else _load_released(directory, config)
    tokenizer = directory / TOKENIZER_FILE
    checkpoint.tokenizer_file = tokenizer if tokenizer.is_file() else None
    return checkpoint


def spans_of(path: str | os.PathLike[str]) -> StateDict:
    """The spans of a checkpoint's calibrated convolutions by the name of their layer, and nothing else of it read."""
    directory = resolve(path)
    file = directory / MODEL_FILE
    if not find_config(directory)[1]:
        return {}
    with safetensors.safe_open(file, framework="pt") as stored:
        return _take_spans(file, {key: stored.get_tensor(key) for key in stored.keys() if key.endswith(SPAN)})  # noqa: SIM118


def quantization_of(path: str | os.PathLike[str]) -> str | None:
    """What the matrices of a checkpoint's file are rounded to, and nothing else of it read."""
    directory = resolve(path)
    if not find_config(directory)[1]:
        return None
    with safetensors.safe_open(directory / MODEL_FILE, framework="pt") as stored:
        scale = next((key for key in stored.keys() if key.endswith(SCALE)), None)  # noqa: SIM118
        dtype = None if scale is None else stored.get_tensor(scale.removesuffix(SCALE) + WEIGHT).dtype
    return next((kind for kind, own in QUANTIZED.items() if own is dtype), None)


def with_refiner(prior: Checkpoint, refiner: Checkpoint) -> Checkpoint:
    """One checkpoint of the two of a globally conditioned model: top codes from the first, bottom from the second."""
    return replace(prior, config=pair(prior.config, refiner.config), refiner=refiner.transformer)


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
    quantized, spans = _take_quantized(file, state), _take_spans(file, state)
    expected = {
        f"{prefix}.{key}": Source(((f"{prefix}.{key}", tuple(value.shape)),))
        for prefix, module in checkpoint.modules().items()
        for key, value in module.state_dict().items()
    }
    _assign_all(checkpoint, _collect(file, state, expected))
    for prefix, module in checkpoint.modules().items():
        for name, layer in module.named_modules():
            weight = quantized.pop(f"{prefix}.{name}", None) if isinstance(layer, Linear) else None
            if weight is not None:
                layer.adopt(weight)
    if quantized:
        raise CheckpointError(f"{file}: {next(iter(quantized))}{SCALE}: expected of a linear layer; this is none")
    for name, layer in roundable(checkpoint.vae):
        layer.span = spans.pop(f"vae.{name}", None)
    if spans:
        raise CheckpointError(f"{file}: {next(iter(spans))}{SPAN}: expected of a decoder's convolution; this is none")
    return checkpoint


def _take_quantized(file: Path, state: StateDict) -> dict[str, QuantizedWeight]:
    """Weights in one byte a value by the name of their layer; the state keeps fp32 ones, and no scales."""
    found, kinds = {}, {dtype: kind for kind, dtype in QUANTIZED.items()}
    for key in [key for key in state if key.endswith(SCALE)]:
        name, scale = key.removesuffix(SCALE), state.pop(key)
        stored = state.get(name + WEIGHT)
        if stored is None or stored.dtype not in kinds or stored.ndim != 2:
            wanted, got = "int8 or fp8 [out, in]", "none" if stored is None else f"{stored.dtype} {list(stored.shape)}"
            raise CheckpointError(f"{file}: {name}{WEIGHT}: expected {wanted} beside a scale; got {got}")
        if scale.dtype != torch.float32 or scale.shape != stored.shape[:1]:
            got = f"{scale.dtype} {list(scale.shape)}"
            raise CheckpointError(f"{file}: {key}: expected torch.float32 {list(stored.shape[:1])}; got {got}")
        found[name] = QuantizedWeight(stored, scale, kinds[stored.dtype])
        state[name + WEIGHT] = found[name].wide(torch.float32)
    for key, value in state.items():
        if value.dtype in kinds:
            raise CheckpointError(f"{file}: {key}: expected {key.removesuffix(WEIGHT)}{SCALE} beside it; found none")
    return found


def _take_spans(file: Path, state: StateDict) -> StateDict:
    """The spans of calibrated convolutions by the name of their layer; the state keeps none."""
    found = {key.removesuffix(SPAN): state.pop(key) for key in list(state) if key.endswith(SPAN)}
    for name, span in found.items():
        if span.dtype != torch.float32 or span.shape != (2,) or not bool(span.isfinite().all() and span[0] < span[1]):
            got = f"{span.dtype} {span.tolist() if span.numel() < 3 else list(span.shape)}"
            raise CheckpointError(f"{file}: {name}{SPAN}: expected two finite fp32 numbers, ascending; got {got}")
    return found


def _load_released(directory: Path, config: HQTVAEConfig) -> Checkpoint:
    files = [directory / name for name in RELEASED_STATE_FILES if (directory / name).is_file()]
    if not files:
        raise CheckpointError(f"{directory}: expected {' or '.join(RELEASED_STATE_FILES)}, found neither")
    state, checkpoint = plain_keys(read_state(files[0]), files[0]), _build_empty(config)
    parts = {"stage1.": ("vae", checkpoint.vae), "stage2.": ("transformer", checkpoint.transformer)}
    expected = {
        f"{name}.{key}": source
        for prefix, (name, module) in parts.items()
        if module is not None
        for key, source in sources(prefix, module).items()
    }
    _assign_all(checkpoint, _collect(files[0], state, expected))
    return checkpoint


def load_stage2_state(config: TransformerConfig, state: StateDict, origin: str) -> HQTransformer:
    """A transformer from the ``state_dict()`` of a released stage-2 module in memory."""
    with without_values():
        transformer = HQTransformer(config)
    _assign(transformer, _collect(Path(origin), state, sources("", transformer)))
    return transformer


def load_stage1_state(config: VAEConfig, state: StateDict, origin: str) -> HQVAE:
    """An HQ-VAE from the ``state_dict()`` of a released stage-1 module in memory."""
    with without_values():
        vae = HQVAE(config)
    _assign(vae, _collect(Path(origin), state, sources("", vae)))
    return vae


def _collect(file: Path, state: StateDict, expected: dict[str, Source]) -> StateDict:
    """Our parameters from the file's tensors; raises :class:`CheckpointError` listing what is missing or misshapen."""
    wanted = {key: shape for source in expected.values() for key, shape in source.parts}
    problems = []
    for key, shape in wanted.items():
        if key not in state:
            problems.append(f"{key}: expected shape {list(shape)}, found no such key")
        elif tuple(state[key].shape) != shape:
            problems.append(f"{key}: expected shape {list(shape)}, found {list(state[key].shape)}")
        elif not is_finite(state[key]):
            problems.append(f"{key}: expected finite values, found NaN or infinity")
    others = [key for key in state if key not in wanted]
    if any(key not in state for key in wanted):
        problems.insert(0, f"its {len(state):,} keys are such as {', '.join((others or list(state))[:KEYS_SHOWN])}")
    problems += [f"{key}: unexpected key, shape {list(state[key].shape)}" for key in others]
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS_SHOWN} more" if len(problems) > MAX_PROBLEMS_SHOWN else ""
        raise CheckpointError(f"{file}: {'; '.join(problems[:MAX_PROBLEMS_SHOWN])}{more}")
    return {name: _join(state, source) for name, source in expected.items()}


def _join(state: StateDict, source: Source) -> Tensor:
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
    state = stored_state(checkpoint)
    config = {"format": FORMAT, "version": FORMAT_VERSION, **to_dict(checkpoint.config)}
    with _staged(target) as stage:
        safetensors.torch.save_file(state, stage / MODEL_FILE, metadata={"format": "pt"})
        (stage / MODEL_FILE).chmod(
            stage.stat().st_mode & 0o666
        )  # as any new file; safetensors makes it the owner's only
        if checkpoint.tokenizer_file is not None:
            shutil.copyfile(checkpoint.tokenizer_file, stage / TOKENIZER_FILE)
        (stage / CONFIG_FILE).write_text(json_text(config, indent=2) + "\n", encoding="utf-8")
    return target


def stored_state(checkpoint: Checkpoint) -> StateDict:
    """What a file holds: each part's tensors, of quantized matrices one byte a value and a scale an output, of
    calibrated convolutions the span of their input."""
    state: StateDict = {}
    for prefix, module in checkpoint.modules().items():
        state |= {f"{prefix}.{key}": value for key, value in module.state_dict().items()}
        for name, quantized in quantized_linears(module).items():
            state[f"{prefix}.{name}{WEIGHT}"], state[f"{prefix}.{name}{SCALE}"] = quantized.stored, quantized.scale
    state |= {f"vae.{name}{SPAN}": layer.span for name, layer in roundable(checkpoint.vae) if layer.span is not None}
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


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
