"""``hqtvae train``: both stages, in one or one by one; from a preset, a YAML file, flags, or the data alone."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hqtvae_fast.cli.output import waiting
from hqtvae_fast.cli.presets import presets
from hqtvae_fast.cli.train_options import (
    HOW,
    KINDS,
    WHAT,
    Accumulate,
    BatchSize,
    Caption,
    Checkpointing,
    CodeCache,
    ConditionDropout,
    ConditionOption,
    Config,
    Data,
    Epochs,
    Init,
    Out,
    Precision,
    PresetName,
    Rate,
    Resolution,
    SaveEvery,
    Seed,
    Select,
    Size,
    Steps,
    StopAfter,
    StopAfterMinutes,
    Validation,
)


class Commands(TyperGroup):
    """``hqtvae train PICTURES`` is ``hqtvae train both PICTURES``: what names no command is pictures."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *self.get_help_option_names(ctx)}:
            args = ["both", *args]
        return super().parse_args(ctx, args)


train = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Train a model on your pictures: hqtvae train PICTURES --out runs/mine\n\nThat is HQ-VAE (stage1), then"
    " HQ-Transformer on its codes (stage2): `both`, whose --help has the options. Stopped anywhere, the same command"
    " goes on. The number and names of classes, captions, and sizes are taken from the data.\n\nWith several GPUs:"
    " torchrun --nproc-per-node N -m hqtvae_fast.cli train ..., or accelerate launch; nothing else changes.",
)


@train.command(epilog="Example: hqtvae train pictures/ --out runs/mine, then hqtvae sample runs/mine")
def both(
    pictures: Annotated[list[str] | None, typer.Argument(metavar="PICTURES...", help=KINDS, show_default=False)] = None,
    data: Annotated[list[str] | None, typer.Option("--data", metavar="PATH", help="The same.", hidden=True)] = None,
    out: Out = None,
    size: Size = None,
    resolution: Resolution = None,
    init: Init = None,
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae",
            metavar="CHECKPOINT",
            help="A trained stage 1, in place of training one.",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    condition: ConditionOption = None,
    condition_dropout: ConditionDropout = None,
    caption: Caption = None,
    validation: Validation = None,
    select: Select = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    learning_rate: Rate = None,
    precision: Precision = None,
    seed: Seed = None,
    save_every: SaveEvery = None,
    stop_after_minutes: StopAfterMinutes = None,
) -> None:
    """Both stages in one, from a folder of pictures to a model that draws: also `hqtvae train PICTURES`.

    Options such as --steps and --batch-size are for each stage; for more than that, train the stages one by one.
    """
    given = _given({**locals(), "data": [*(pictures or []), *(data or [])] or None})
    del given["pictures"]
    _need(given, "data", "PICTURES")
    _need(given, "out", "--out")
    with waiting("Starting"):
        _need_extra()
        from hqtvae_fast.train.whole import train_whole

    with _named_as_options(given):
        train_whole(given, _this_command())


@train.command(epilog="Example: hqtvae train stage1 --preset imagenet --data pictures/ --out runs/vae --epochs 50")
def stage1(
    config: Config = None,
    preset: PresetName = None,
    data: Data = None,
    validation: Validation = None,
    select: Select = None,
    init: Init = None,
    out: Out = None,
    size: Size = None,
    resolution: Resolution = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    learning_rate: Rate = None,
    precision: Precision = None,
    seed: Seed = None,
    save_every: SaveEvery = None,
    stop_after: StopAfter = None,
    stop_after_minutes: StopAfterMinutes = None,
) -> None:
    """Train HQ-VAE: pictures to codes and back."""
    given = _given(locals())
    with waiting("Starting"):
        _need_extra()
        from hqtvae_fast.train.config import Stage1Run, read_run
        from hqtvae_fast.train.run import train_stage1
        from hqtvae_fast.train.shown.telling import Telling

    with _named_as_options(given):
        run = read_run(Stage1Run, config, given, preset)
    train_stage1(run, Telling(_this_command()))


@train.command(epilog="Example: hqtvae train stage2 --preset S --vae runs/vae --data pictures/ --out runs/hqt")
def stage2(
    config: Config = None,
    preset: PresetName = None,
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae",
            metavar="CHECKPOINT",
            help="The trained stage 1. Shards of codes as --data know theirs.",
            show_default=False,
            rich_help_panel=WHAT,
        ),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(
            "--prior",
            metavar="DIR",
            help="For the refiner of global conditioning: the trained prior, whose top codes it completes. The result"
            " holds both. Stands for --vae too.",
            show_default=False,
            rich_help_panel=WHAT,
        ),
    ] = None,
    soft_labels: Annotated[
        float | None,
        typer.Option(
            "--soft-labels",
            metavar="TAU",
            min=0.0,
            help="Temperature of the targets softmax(-squared distance / TAU); 0: the codes themselves. Default 1,"
            " or 0 with codes as data.",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    data: Data = None,
    code_cache: CodeCache = None,
    validation: Validation = None,
    select: Select = None,
    init: Init = None,
    out: Out = None,
    size: Size = None,
    condition: ConditionOption = None,
    condition_dropout: ConditionDropout = None,
    caption: Caption = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    learning_rate: Rate = None,
    precision: Precision = None,
    activation_checkpointing: Checkpointing = None,
    seed: Seed = None,
    save_every: SaveEvery = None,
    stop_after: StopAfter = None,
    stop_after_minutes: StopAfterMinutes = None,
) -> None:
    """Train HQ-Transformer: codes from classes, captions or nothing."""
    given = _given(locals())
    with waiting("Starting"):
        _need_extra()
        from hqtvae_fast.train.config import Stage2Run, read_run
        from hqtvae_fast.train.run import train_stage2
        from hqtvae_fast.train.shown.telling import Telling

    with _named_as_options(given):
        run = read_run(Stage2Run, config, given, preset)
    train_stage2(run, Telling(_this_command()))


train.command(epilog="Example: hqtvae train presets, then hqtvae train stage1 --preset NAME ...")(presets)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as fields of a run."""
    given = {name: value for name, value in options.items() if name not in ("config", "preset") and value is not None}
    if "select" in given:
        given["select"] = _fields_and_values(given["select"])
    return {name: _plain(value) for name, value in given.items()}


@contextmanager
def _named_as_options(given: dict[str, Any]) -> Iterator[None]:
    """A refusal of a field that an option gave names the option; one of a file's field begins with the file's name."""
    try:
        yield
    except ValueError as error:
        name, colon, rest = str(error).partition(":")
        if name not in given:
            raise
        raise ValueError(f"--{name.replace('_', '-')}{colon}{rest}") from error


def _this_command() -> str:
    """What this process was started as, to be typed again."""
    program = Path(sys.argv[0])
    name = "python -m hqtvae_fast.cli" if program.name == "__main__.py" else program.name
    return f"{name} {shlex.join(sys.argv[1:])}"


def _need(given: dict[str, Any], name: str, shown: str) -> None:
    if not given.get(name):
        raise ValueError(f"{shown}: expected a path; got none (hqtvae train --help)")


def _fields_and_values(pairs: list[str]) -> dict[str, list[Any]]:
    """``["style=noto", "style=fluent"]`` as ``{"style": ["noto", "fluent"]}``; values as YAML reads them."""
    import yaml

    found: dict[str, list[Any]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"--select: expected FIELD=VALUE; got {pair!r}")
        found.setdefault(name, []).append(yaml.safe_load(value))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _need_extra() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError:
        raise ValueError("training needs the 'train' extra: pip install 'hqtvae_fast[train]'") from None
