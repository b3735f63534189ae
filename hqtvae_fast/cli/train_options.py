"""The options of ``hqtvae train``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

KINDS = (
    "A folder of class folders (the names of the classes are kept), a folder of pictures with captions.json or"
    " captions.csv, a folder of pictures alone, WebDataset shards (a file, a pattern such as 'shards/{000..009}.tar', a"
    " folder of them), or, for stage 2, shards of codes that encode --shards wrote."
)
WHAT, HOW, RUN = "What to train on", "How", "The run"  # panels of --help


class SizeName(str, Enum):
    """A model and its training, together."""

    tiny = "tiny"
    small = "small"
    paper = "paper"


class ConditionName(str, Enum):
    """What pictures are drawn from."""

    classes = "class"
    text = "text"
    none = "none"


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
        help=KINDS + " May be repeated.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Validation = Annotated[
    list[str] | None,
    typer.Option(
        "--validation",
        metavar="PATH",
        help="Held-out pictures, or none.",
        show_default="a tenth of the pictures, at most 2,048, evenly over the classes",
        rich_help_panel=WHAT,
    ),
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
    str | None,
    typer.Option(
        "--init",
        metavar="CHECKPOINT",
        help="Fine-tune: take over the architecture, weights and tokenizer of this checkpoint (demo, a directory, a"
        " run, a Hub name). Other classes or words than its own get new tables.",
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
        " where its last checkpoint stands. Every command takes it for the model in it.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
Size = Annotated[
    SizeName | None,
    typer.Option(
        "--size",
        help="tiny: 64x64 pictures, for a CPU. small: 128x128, for one GPU. paper: the paper's 256x256.",
        show_default="tiny on a CPU; on a GPU small, or paper from 50,000 pictures on",
        rich_help_panel=HOW,
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        "--resolution",
        min=8,
        help="Side of the pictures: a multiple of 16, of 32 for the paper's.",
        show_default="the size's",
        rich_help_panel=HOW,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", min=1, help="Updates in all.", show_default="by the number of pictures", rich_help_panel=HOW
    ),
]
Epochs = Annotated[
    float | None, typer.Option("--epochs", help="Or passes over the data.", show_default=False, rich_help_panel=HOW)
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Pictures an update, over all processes.",
        show_default="the size's or preset's, less of few pictures; else 128",
        rich_help_panel=HOW,
    ),
]
Accumulate = Annotated[
    int | None,
    typer.Option("--accumulate", min=1, help="Micro-batches an update, for less memory.", rich_help_panel=HOW),
]
Rate = Annotated[
    float | None,
    typer.Option("--learning-rate", help="At its peak.", show_default="the size's or preset's", rich_help_panel=HOW),
]
SaveEvery = Annotated[
    int | None,
    typer.Option(
        "--save-every",
        min=1,
        help="Updates between two checkpoints.",
        show_default="a tenth of the run, at most 500",
        rich_help_panel=RUN,
    ),
]
ConditionOption = Annotated[
    ConditionName | None,
    typer.Option(
        "--condition",
        help="What pictures are drawn from.",
        show_default="what the data has: captions, else classes, else nothing",
        rich_help_panel=WHAT,
    ),
]
ConditionDropout = Annotated[
    float | None,
    typer.Option(
        "--condition-dropout",
        metavar="SHARE",
        min=0.0,
        max=1.0,
        help="Withhold the class or caption of this share of the pictures, so that sample --guidance can draw against"
        " them: 0.1 is usual.",
        show_default="none",
        rich_help_panel=HOW,
    ),
]
Caption = Annotated[
    str | None,
    typer.Option(
        "--caption",
        metavar="TEMPLATE",
        help="How captions are made of what is known of a picture, as in '{name}, {style}'.",
        show_default="the caption that comes with it",
        rich_help_panel=WHAT,
    ),
]
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
