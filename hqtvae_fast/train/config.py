"""A training run as a YAML file or as flags: what to train, on what, and how."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hqtvae_fast.config import ConfigError

Config = TypeVar("Config", bound="RunConfig")


@dataclass(frozen=True)
class RunConfig:
    """What both stages have in common."""

    data: tuple[str, ...] = ()
    """Pictures to train on: WebDataset shards (files, patterns), or a folder; see train.data.open_source."""
    validation: tuple[str, ...] = ()
    out: str = ""
    """The run's directory; a run that is there goes on."""
    flip: bool = False
    batch_size: int = 128
    """Pictures an update, over all processes."""
    accumulate: int = 1
    """Micro-batches that a process cuts its share into, to need less memory."""
    steps: int | None = None
    epochs: float | None = None
    """Either, not both."""
    warmup_epochs: float = 0.5
    learning_rate: float | None = None
    precision: str = "no"
    """Autocast: no, bf16 or fp16."""
    workers: int = 2
    seed: int = 0
    log_every: int = 10
    save_every: int = 500
    picture_every: int = 500
    keep: int = 2
    stop_after: int | None = None
    """Save and end after this many updates of this process."""
    stop_after_minutes: float | None = None
    """Save and end after this long."""

    def check(self) -> None:
        """ValueError on what cannot be trained with."""
        for name in ("data", "out"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: expected a path, got none")
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError("steps, epochs: expected one of them")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ConfigError(f"precision: expected no, bf16 or fp16; got {self.precision!r}")

    def total_steps(self, per_epoch: int) -> int:
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * per_epoch))

    def warmup_steps(self, per_epoch: int) -> int:
        """At most a tenth of the run, so that a short run is not all warm-up."""
        return min(round(self.warmup_epochs * per_epoch), self.total_steps(per_epoch) // 10)


@dataclass(frozen=True)
class Stage1Run(RunConfig):
    """Stage 1. ``model`` holds fields of VAEConfig that differ from the paper's."""

    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    perceptual_weights: str | None = None
    """VGG16's convolutions, a local file; None trains without a perceptual loss."""
    lpips_weights: str | None = None
    perceptual: float = 1.0
    adversarial: float = 0.75
    adversarial_start: int = 0
    discriminator_channels: int = 64
    restart_unused: bool = False


@dataclass(frozen=True)
class Stage2Run(RunConfig):
    """Stage 2. ``model`` holds fields of TransformerConfig that differ from the paper's."""

    vae: str = ""
    """A checkpoint directory with the trained stage 1."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    caption: str = "plain"
    """How captions are made from what is known of a picture: plain, emoji, or a template such as "{name}, {style}"."""
    vocab_size: int = 4096
    weight_decay: float = 1e-4
    clip: float | None = 1.0
    soft_labels: float | None = 1.0
    sample_prompts: tuple[str, ...] = ()
    sample_top_k: int | None = None
    sample_temperature: float = 1.0
    warmup_epochs: float = 1.0

    def check(self) -> None:
        super().check()
        if not self.vae:
            raise ConfigError("vae: expected the checkpoint directory of a trained stage 1, got none")


def read_run(cls: type[Config], file: Path | None, overrides: dict[str, Any]) -> Config:
    """A run from a YAML file, if there is one, with ``overrides`` on top (those that are not None); checked."""
    data: dict[str, Any] = {}
    if file is not None:
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{file}: expected fields and values; got {type(data).__name__}")
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ConfigError(f"{file}: unknown field {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    data |= {name: value for name, value in overrides.items() if value is not None}
    values: dict[str, Any] = {name: _tuple(value) if name in _TUPLES else value for name, value in data.items()}
    run = cls(**values)
    run.check()
    return run


_TUPLES = ("data", "validation", "sample_prompts")


def _tuple(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
