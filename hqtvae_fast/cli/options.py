"""Arguments and options that several commands share, and readers of those with a syntax of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hqtvae_fast.classes import NO_CLASSES
from hqtvae_fast.cli.output import waiting
from hqtvae_fast.config import DEFAULT_BATCH

if TYPE_CHECKING:
    from hqtvae_fast.pipeline import HQTVAEPipeline

OUTPUT, MACHINE = "Output", "Machine"  # panels of --help


class Precision(str, Enum):
    """What to store as."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class ComputeIn(str, Enum):
    """What to compute in."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


class Quantization(str, Enum):
    """What to round the transformer's matrices to."""

    int8 = "int8"
    fp8 = "fp8"


Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Directory of a released checkpoint or of one in this package's format, a Hub name (owner/name), or demo:"
        " the small model that comes with the package.",
        show_default=False,
    ),
]
Images = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE...",
        help="Picture files, and folders of them (searched in depth). Another size than the model's is resized and"
        " centre-cropped; what is not RGB is converted, with transparency over white.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="cpu, cuda or cuda:N.",
        show_default="the GPU where there is one",
        rich_help_panel=MACHINE,
    ),
]
DType = Annotated[
    ComputeIn | None,
    typer.Option(
        "--dtype",
        help="What the transformer and the decoder compute in (tf32: fp32 as an NVIDIA GPU's tensor cores multiply it);"
        " encoding is always fp32.",
        show_default="the fastest that this machine's processor has in hardware",
        rich_help_panel=MACHINE,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        min=1,
        help="Images at a time. It changes speed and memory only.",
        show_default=f"what `hqtvae tune` found; else {DEFAULT_BATCH['cuda']} on GPUs, {DEFAULT_BATCH['cpu']} on CPUs",
        rich_help_panel=MACHINE,
    ),
]
Quantize = Annotated[
    Quantization | None,
    typer.Option(
        "--quantize",
        help="Round the transformer's matrices to one byte a value, for good. int8: a CPU rounds the inputs of products"
        " too, and reads a quarter of fp32's bytes; a GPU reads half of bf16's at up to 16 rows. fp8: a GPU of compute"
        " capability 8.9 (Ada, Hopper) or above. `hqtvae bench precision` shows what it does to a model's logits.",
        show_default="no rounding",
        rich_help_panel=MACHINE,
    ),
]
Plan = Annotated[
    str,
    typer.Option(
        "--plan",
        metavar="PLAN",
        help="Which kernels compute: auto (what `hqtvae tune` found here, else default), default, library (libraries"
        " alone), reference (plain torch, slow), or a plan's file.",
        rich_help_panel=MACHINE,
    ),
]
AcceptFacts = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-fact",
        metavar="FACT",
        help="Take a plan's file though this fact of it differs here, such as driver. May be repeated.",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
OutDir = Annotated[
    Path | None,
    typer.Option(
        "--out-dir",
        metavar="DIR",
        help="Write each picture to a file of its own in this folder, made if absent.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Columns = Annotated[
    int | None,
    typer.Option(
        "--columns",
        metavar="N",
        min=1,
        help="Pictures in a row of the sheet.",
        show_default="the 2 to 16 of each class or prompt, else about as many as rows",
        rich_help_panel=OUTPUT,
    ),
]
TopOnly = Annotated[
    bool,
    typer.Option(
        "--top-only",
        help="Decode the top codes alone, the finer levels left out (the paper's figure 1).",
        rich_help_panel=OUTPUT,
    ),
]
BottomOnly = Annotated[
    bool,
    typer.Option(
        "--bottom-only",
        help="Decode the finest codes alone, the coarser levels left out.",
        rich_help_panel=OUTPUT,
    ),
]


def open_pipeline(
    checkpoint: str | os.PathLike[str],
    device: str | None,
    dtype: ComputeIn | None,
    refiner: Path | None = None,
    **options: Any,
) -> HQTVAEPipeline:
    """``options``: the engine's, as ``from_pretrained`` takes them."""
    with waiting(f"Opening {checkpoint}"):
        from hqtvae_fast.pipeline import HQTVAEPipeline

        return HQTVAEPipeline.from_pretrained(
            checkpoint, device=device, dtype=None if dtype is None else dtype.value, refiner=refiner, **options
        )


def batch_of(pipe: HQTVAEPipeline, batch_size: int | None) -> int:
    """The batch size asked for, or the one that is the fastest as far as is known."""
    from hqtvae_fast.engine.batches import best_batch

    return best_batch(pipe.plan, pipe.device) if batch_size is None else batch_size


def parse_integers(option: str, values: Iterable[str]) -> list[int]:
    """``["0,3", "5-7"]`` -> [0, 3, 5, 6, 7]. Commas or spaces separate; a range has both its ends."""
    return NO_CLASSES.parse(option, values)  # there are no names to confuse them with


def parse_per_level(option: str, text: str | None, kind: Callable[[str], Any], *, none: bool = True) -> Any:
    """``"2048"`` -> 2048; ``"2048,none"`` -> [2048, None] where ``none`` is a value, one a level; None stays None."""
    if text is None:
        return None
    try:
        values = [None if none and part.strip().lower() == "none" else kind(part) for part in text.split(",")]
    except ValueError:
        noun, example = "an integer" if kind is int else "a number", "2,none" if none else "1,0.9"
        raise ValueError(f"{option}: expected {noun}, or one per level such as {example}; got {text!r}") from None
    return values[0] if len(values) == 1 else values


def kept_level(top_only: bool, bottom_only: bool) -> int | None:
    """Index of the one level to decode, or None for all."""
    if top_only and bottom_only:
        raise ValueError("--top-only and --bottom-only: expected at most one of them")
    return 0 if top_only else -1 if bottom_only else None
