"""A training run as a YAML file or as flags: what to train, on what, and how."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from hqtvae_fast.config import MAX_LEVELS, Share
from hqtvae_fast.fields import Between, ConfigError
from hqtvae_fast.train.presets import load_preset, read_fields
from hqtvae_fast.train.yaml_fields import typed_fields

Config = TypeVar("Config", bound="RunConfig")
TopOnly = Literal["none", "pixels", "all"]
Schedule = Literal["cosine", "constant"]
Autocast = Literal["no", "bf16", "fp16"]
Size = Literal["tiny", "small", "paper"]
Counted = Annotated[int, Between(1)]
Interval = Annotated[int, Between(0)]
Weight = Annotated[float, Between(0)]
Seed = Annotated[int, Between(0, 2**32 - 2**16)]
"""numpy's largest, less room for a rank's number."""
SOFT_LABELS = 1.0
"""The paper's tau."""


INTERNAL = {"internal": True}  # of a field that is no option and stands in no file
FREE = {"when going on": "free"}
"""Of a field that may be another when a run goes on, and takes effect from there. All others may not."""
PASSING = {"when going on": "passing"}
"""Of a field that is for one process, and is forgotten with it."""


@dataclass(frozen=True)
class RunConfig:
    """What both stages have in common."""

    stage: ClassVar[str]
    """The folder of its presets."""
    title: ClassVar[str]

    data: tuple[str, ...] = field(default=(), metadata=FREE)
    """Pictures to train on: WebDataset shards (files, patterns), or a folder; see train.data.open_source."""
    validation: tuple[str, ...] = field(default=(), metadata=FREE)
    """Held-out pictures, likewise. Without them a tenth of the data is held out; ``none``: nothing is."""
    validation_pictures: Counted = field(default=2048, metadata=FREE)
    """At most so many of them are used, spread evenly over the set."""
    select: dict[str, Any] = field(default_factory=dict)
    """Only pictures, held-out ones too, whose fields have one of these values: {style: [noto, fluent], group: Food}."""
    init: str | None = None
    """A checkpoint whose architecture, weights and tokenizer the run begins with, to fine-tune; None: random ones."""
    size: Size | None = None
    """A model and its training, see :mod:`hqtvae_fast.train.sizing.sizes`; None: picked, unless ``model`` is there."""
    resolution: Annotated[int, Between(8, 8192)] | None = None
    """Side of the pictures; None: the model's."""
    out: str = field(default="", metadata=PASSING)
    """The run's directory; a run that is there goes on."""
    flip: bool = field(default=False, metadata=FREE)
    crops: Annotated[float, Between(0.05, 1)] = field(default=1.0, metadata=FREE)
    """Least share of a picture's square that a random crop shows; 1: squares along the long side alone."""
    batch_size: Counted = field(default=128, metadata=FREE)
    """Pictures an update, over all processes."""
    accumulate: Counted = field(default=1, metadata=FREE)
    """Micro-batches that a process cuts its share into, to need less memory."""
    steps: Counted | None = field(default=None, metadata=FREE)
    epochs: Annotated[float, Between(0.001)] | None = field(default=None, metadata=FREE)
    """Either, not both."""
    warmup_epochs: Weight = field(default=0.5, metadata=FREE)
    learning_rate: Weight | None = field(default=None, metadata=FREE)
    precision: Autocast = field(default="no", metadata=FREE)
    """What forward and backward passes compute in."""
    workers: Interval = field(default=2, metadata=FREE)
    seed: Seed = 0
    log_every: Interval = field(default=10, metadata=FREE)
    save_every: Interval | None = field(default=None, metadata=FREE)
    picture_every: Interval | None = field(default=None, metadata=FREE)
    validate_every: Interval | None = field(default=None, metadata=FREE)
    """Updates between two validations; 0: none."""
    keep: Counted = field(default=2, metadata=FREE)
    """Checkpoints, the newest ones."""
    given: tuple[str, ...] = field(default=(), metadata=INTERNAL)
    """The fields that somebody has named; what nobody has is picked to fit the data and the machine."""
    stop_after: Counted | None = field(default=None, metadata=PASSING)
    """Save and end after this many updates of this process."""
    stop_after_minutes: Weight | None = field(default=None, metadata=PASSING)
    """Save and end after this long."""

    def check(self) -> None:
        """ConfigError on fields that do not go together; what each may be says its type."""
        for name in ("data", "out"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: expected a path, got none")
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("steps, epochs: expected one of them")
        if self.size is not None and "model" in self.given:
            raise ConfigError("size: expected none beside a model that a preset or a file describes")
        if self.size is not None and self.init is not None:
            raise ConfigError(f"size: expected none with init, whose model the run has; got {self.size}")

    @property
    def selected(self) -> dict[str, list[Any]]:
        """``select`` with a list for every field."""
        return {name: value if isinstance(value, list) else [value] for name, value in self.select.items()}

    def total_steps(self, per_epoch: float, more: float = 0.0) -> int:
        """``per_epoch``: updates, not rounded. ``more``: so many updates more than their pictures would make now, as
        their batches had another size."""
        if self.steps is not None:
            return self.steps
        return max(1, round((0 if self.epochs is None else self.epochs) * per_epoch + more))

    def warmup_steps(self, per_epoch: float, more: float = 0.0) -> int:
        """At most a tenth of the run, so that a short run is not all warm-up."""
        return min(round(self.warmup_epochs * per_epoch), self.total_steps(per_epoch, more) // 10)


@dataclass(frozen=True)
class Stage1Run(RunConfig):
    """Stage 1. ``model`` holds fields of VAEConfig that differ from the paper's."""

    stage: ClassVar[str] = "stage1"
    title: ClassVar[str] = "stage 1"

    model: dict[str, Any] = field(default_factory=dict)
    perceptual_weights: str | None = field(default=None, metadata=FREE)
    """VGG16's convolutions, a local file; None trains without a perceptual loss."""
    lpips_weights: str | None = field(default=None, metadata=FREE)
    perceptual: Weight = field(default=1.0, metadata=FREE)
    perceptual_crop: Annotated[int, Between(16)] | None = field(default=None, metadata=FREE)
    """Side of a square, elsewhere in each update, that the perceptual loss sees of the pictures; None: all of them.
    Half the side is a quarter of VGG16's arithmetic, which on a CPU is most of an update's."""
    adversarial: Weight = 0.75
    adversarial_start: Interval = 0
    discriminator_channels: Counted = 64
    restart_unused: bool = field(default=False, metadata=FREE)
    commitment: Weight = field(default=1.0, metadata=FREE)
    """On top of beta, which is ``model.commitment_weight``."""
    top_only: TopOnly = field(default="none", metadata=FREE)
    """Which losses the picture decoded from top codes alone takes part in: none, pixels, or all."""
    residual: Weight = field(default=0.0, metadata=FREE)
    """Weight of the mean |residual| below the top level, which keeps the top codes in use."""
    schedule: Schedule = field(default="cosine", metadata=FREE)
    """Of the learning rate after its warm-up: cosine (to 0) or constant."""

    def check(self) -> None:
        super().check()
        if self.discriminator_channels % 16:  # of 32 groups, and twice as many channels
            raise ConfigError(f"discriminator_channels: expected a multiple of 16; got {self.discriminator_channels}")


@dataclass(frozen=True)
class Stage2Run(RunConfig):
    """Stage 2. ``model`` holds fields of TransformerConfig that differ from the paper's."""

    stage: ClassVar[str] = "stage2"
    title: ClassVar[str] = "stage 2"

    vae: str = field(default="", metadata=FREE)
    """A checkpoint directory with the trained stage 1; without it, that of ``prior`` or ``init``, or the one that made
    the codes which are the data."""
    prior: str | None = None
    """For a refiner (``condition: codes``): the checkpoint directory of the trained prior over top codes. The result
    then holds both and draws whole pictures; its stage 1 is taken where ``vae`` names none."""
    model: dict[str, Any] = field(default_factory=dict)
    code_cache: str | None = field(default=None, metadata=FREE)
    """A file with the codes of all pictures' centre squares, made if it is not there; None codes pictures as they come,
    with random crops. Much larger with ``soft_labels``."""
    condition: Literal["class", "text", "none"] | None = None
    """What pictures are drawn from; None: what the data has, captions rather than classes."""
    caption: str = "plain"
    """How captions are made from what is known of a picture: plain, emoji, or a template such as "{name}, {style}"."""
    vocab_size: Annotated[int, Between(3)] = 4096
    condition_dropout: Share = 0.0
    """The share of pictures that is shown without its class or caption, a null condition in its place, for guidance."""
    weight_decay: Weight = field(default=1e-4, metadata=FREE)
    clip: Annotated[float, Between(1e-9)] | None = field(default=1.0, metadata=FREE)
    activation_checkpointing: bool = field(default=False, metadata=FREE)
    """Compute activations again in the backward pass: less memory, a third more arithmetic."""
    soft_labels: Weight | None = field(default=None, metadata=FREE)
    """tau of the targets softmax(-squared distance / tau), in units of squared distance; 0: the codes themselves.
    Where nothing is said, 1; with codes as data, which tell no distances, 0."""
    level_weights: Annotated[tuple[Weight, ...], Between(1, MAX_LEVELS)] | None = field(default=None, metadata=FREE)
    """Weights of the levels' losses, top first; None weighs a level by its codes below a top code: 1, 4, 16."""
    image_weight: Weight = field(default=0.9, metadata=FREE)
    text_weight: Weight = field(default=0.1, metadata=FREE)
    """These two of a text model; see :class:`hqtvae_fast.train.losses.Stage2Weights`."""
    sample_prompts: tuple[str, ...] = field(default=(), metadata=FREE)
    sample_top_k: Counted | None = field(default=None, metadata=FREE)
    sample_temperature: Annotated[float, Between(1e-9)] = field(default=1.0, metadata=FREE)
    warmup_epochs: Weight = field(default=1.0, metadata=FREE)

    @property
    def tau(self) -> float | None:
        """Of the targets; None where they are the codes themselves."""
        if self.soft_labels is None:
            return SOFT_LABELS
        return None if self.soft_labels == 0 else self.soft_labels


def read_run(cls: type[Config], file: Path | None, overrides: dict[str, Any], preset: str | None = None) -> Config:
    """A run, checked: of a preset, with a YAML file's fields on top, and on both those of ``overrides`` not None."""
    data: dict[str, Any] = {}
    if preset is not None:
        data = _read(cls, load_preset(cls.stage, preset).fields, f"preset {preset}: ")
    if file is not None:
        data = layered(data, _read(cls, read_fields(file), f"{file}: "))
    data = layered(data, _read(cls, {name: value for name, value in overrides.items() if value is not None}))
    run = cls(**data, given=tuple(sorted(data)))
    run.check()
    return run


def completed(run: Config, fields: dict[str, Any]) -> Config:
    """The run with ``fields`` for what nobody has named; fields of ``model`` are filled in one by one."""
    above = {name: getattr(run, name) for name in run.given}
    if "steps" in above or "epochs" in above:
        fields = {name: value for name, value in fields.items() if name not in ("steps", "epochs")}
    return dataclasses.replace(run, **layered(_read(type(run), fields), above))


def may_change(cls: type[RunConfig], name: str) -> bool:
    """Whether a run may go on with another value of this field."""
    return any(f.name == name and f.metadata == FREE for f in dataclasses.fields(cls))


def passes(name: str) -> bool:
    """Whether the field is for one process."""
    return any(f.name == name and f.metadata == PASSING for f in dataclasses.fields(RunConfig))


def described(run: RunConfig) -> dict[str, Any]:
    """The run as its file ``run.json`` has it."""
    internal = {f.name for f in dataclasses.fields(run) if f.metadata.get("internal")}
    return {name: value for name, value in dataclasses.asdict(run).items() if name not in internal}


def _read(cls: type[Config], fields: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Fields in their types and within their bounds; ConfigError names ``where`` they stand, and the field."""
    known = {f.name for f in dataclasses.fields(cls) if not f.metadata.get("internal")}
    unknown = sorted(str(name) for name in set(fields) - known)
    if unknown:
        raise ConfigError(f"{where}unknown field {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    try:
        return typed_fields(cls, fields)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def layered(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A run's fields with others on top. They say anew how long to train, if they do: in steps or in epochs."""
    if above.get("steps") is not None or above.get("epochs") is not None:
        below = {name: value for name, value in below.items() if name not in ("steps", "epochs")}
    return merged(below, above)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``below`` with ``above`` on top; mappings of the same name are merged alike, anything else is replaced."""
    both = {name for name, value in above.items() if isinstance(value, dict) and isinstance(below.get(name), dict)}
    return {**below, **above, **{name: merged(below[name], above[name]) for name in both}}
