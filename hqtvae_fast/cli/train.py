"""``hqtvae train``: both stages, from a preset, a YAML file or flags."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from hqtvae_fast.cli.output import waiting
from hqtvae_fast.cli.presets import presets

WHAT, HOW, RUN = "What to train on", "How", "The run"  # panels of --help


class Autocast(str, Enum):
    """What forward and backward passes compute in."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


Config = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG.yaml]",
        help="Fields of the run, by the names of these options (data, batch_size, ...) and more: model, loss weights."
        " Options given here come on top.",
        show_default=False,
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Begin from one of the paper's runs: model, losses, batch, learning rate, epochs. hqtvae train presets"
        " lists them. CONFIG.yaml comes on top of it, and options on top of both.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="WebDataset shards (a file, a pattern such as 'shards/{000..009}.tar', a folder of them), a folder of"
        " class folders, or a folder of pictures with captions.json;"
        " for stage 2 also shards of codes, written by encode --shards. May be repeated.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Validation = Annotated[
    list[str] | None,
    typer.Option("--validation", metavar="PATH", help="Held-out pictures.", show_default=False, rich_help_panel=WHAT),
]
Select = Annotated[
    list[str] | None,
    typer.Option(
        "--select",
        metavar="FIELD=VALUE",
        help="Only pictures whose field (of a shard's .json, say) has this value. May be repeated: values of one field"
        " stand beside each other, those of several fields must all fit.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Init = Annotated[
    Path | None,
    typer.Option(
        "--init",
        metavar="DIR",
        help="Fine-tune: begin with the weights (and tokenizer) of this checkpoint of the same sizes.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="The run's directory: checkpoints, logs, pictures and, in the end, model/. A run that is there goes on"
        " where its last checkpoint stands.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Updates in all.", rich_help_panel=HOW)]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Or passes over the data.", rich_help_panel=HOW)]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, help="Pictures an update, over all processes. Default 128.", rich_help_panel=HOW
    ),
]
Accumulate = Annotated[
    int | None,
    typer.Option("--accumulate", min=1, help="Micro-batches an update, for less memory.", rich_help_panel=HOW),
]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="At its peak.", rich_help_panel=HOW)]
Precision = Annotated[Autocast | None, typer.Option("--precision", help="Autocast.", rich_help_panel=HOW)]
CodeCache = Annotated[
    Path | None,
    typer.Option(
        "--code-cache",
        metavar="FILE",
        help="Code all pictures once, into this file, and train from it: no crops but the centre square. A folder that"
        " encode --shards wrote will do too, without soft labels.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Checkpointing = Annotated[
    bool | None,
    typer.Option(
        "--activation-checkpointing/--no-activation-checkpointing",
        help="Compute activations twice, to need less memory.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Order, crops, weights and dropout.", rich_help_panel=HOW)]
StopAfter = Annotated[
    int | None,
    typer.Option(
        "--stop-after",
        min=1,
        help="Save and end after this many updates of this process, to train in pieces.",
        rich_help_panel=RUN,
    ),
]
StopAfterMinutes = Annotated[
    float | None,
    typer.Option("--stop-after-minutes", min=0.01, help="The same, by time.", rich_help_panel=RUN),
]

train = typer.Typer(
    no_args_is_help=True,
    help="Train HQ-VAE (stage1), then HQ-Transformer on its codes (stage2).\n\nWith several GPUs: torchrun"
    " --nproc-per-node N -m hqtvae_fast.cli train ..., or accelerate launch; nothing else changes.",
)


@train.command(epilog="Example: hqtvae train stage1 --preset imagenet --data pictures/ --out runs/vae --epochs 50")
def stage1(
    config: Config = None,
    preset: PresetName = None,
    data: Data = None,
    validation: Validation = None,
    select: Select = None,
    init: Init = None,
    out: Out = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    learning_rate: Rate = None,
    precision: Precision = None,
    seed: Seed = None,
    stop_after: StopAfter = None,
    stop_after_minutes: StopAfterMinutes = None,
) -> None:
    """Train HQ-VAE: pictures to codes and back."""
    given = _given(locals())
    with waiting("Starting"):
        _need_extra()
        from hqtvae_fast.train.config import Stage1Run, read_run
        from hqtvae_fast.train.run import train_stage1

    with _named_as_options(given):
        run = read_run(Stage1Run, config, given, preset)
    train_stage1(run)


@train.command(epilog="Example: hqtvae train stage2 --preset S --vae runs/vae/model --data pictures/ --out runs/hqt")
def stage2(
    config: Config = None,
    preset: PresetName = None,
    vae: Annotated[
        Path | None,
        typer.Option(
            "--vae",
            metavar="DIR",
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
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    learning_rate: Rate = None,
    precision: Precision = None,
    activation_checkpointing: Checkpointing = None,
    seed: Seed = None,
    stop_after: StopAfter = None,
    stop_after_minutes: StopAfterMinutes = None,
) -> None:
    """Train HQ-Transformer: codes from classes, captions or nothing."""
    given = _given(locals())
    with waiting("Starting"):
        _need_extra()
        from hqtvae_fast.train.config import Stage2Run, read_run
        from hqtvae_fast.train.run import train_stage2

    with _named_as_options(given):
        run = read_run(Stage2Run, config, given, preset)
    train_stage2(run)


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
