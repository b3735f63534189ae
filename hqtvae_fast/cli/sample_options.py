"""The options that ``hqtvae sample`` alone has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from hqtvae_fast.cli.options import OUTPUT, parse_per_level

WHAT, SAMPLING, REJECTION = "What to draw", "Sampling", "Rejection sampling"  # panels of --help

# What the pipeline's messages call these options.
NAMES = {
    "class_labels": "--classes",
    "prompt": "--prompt",
    "num_images": "--num-images",
    "given_top_codes": "--given-top",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "temperature": "--temperature",
    "guidance_scale": "--guidance",
    "negative_prompt": "--negative-prompt",
    "seed": "--seed",
    "quantization": "--quantize",
    "image:": "--image:",  # of pictures messages tell in other places too
    "keep:": "--keep:",
}

Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--classes",
        metavar="LIST",
        help="Classes, for a class-conditional model: by name where they have names (`hqtvae info` lists them), and"
        " integers from 0 and ranges: cat,hot dog,5-7. A name with commas in quotes. May be repeated.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="A description, for a text-conditional model. May be repeated. (An unconditional model takes neither.)",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="A text file of descriptions, one a line, after those of --prompt.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
NumImages = Annotated[
    int,
    typer.Option(
        "--num-images", metavar="N", min=1, help="Pictures of each class, prompt or given map.", rich_help_panel=WHAT
    ),
]
GivenTop = Annotated[
    Path | None,
    typer.Option(
        "--given-top",
        metavar="FILE",
        help="Keep the top codes of this file, written by encode or --save-codes (or these shards of encode --shards),"
        " and draw only the finer ones (the paper's figure 4b). Its maps pair up with the conditions; one of either is"
        " used for all of the other.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
KeptOf = Annotated[
    Path | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="Complete this picture, or these codes (.safetensors): what --keep says stays, and the rest is drawn.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="REGION",
        help="With --image: top-half, bottom-half, left-half, right-half, or a picture that is white where it stays."
        " Codes are drawn row by row and see those above and to the left: top-half is exact, of other regions what is"
        " to come is not seen.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
TopK = Annotated[
    str | None,
    typer.Option(
        "--top-k",
        metavar="K",
        help="Draw among the K likeliest codes: an integer from 1 to the codebook's size, or one per level, top"
        " first, such as 2048,none.",
        show_default="all codes",
        rich_help_panel=SAMPLING,
    ),
]
TopP = Annotated[
    str | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Draw among the likeliest codes that together have probability P: above 0, up to 1; or one per level.",
        show_default="all codes",
        rich_help_panel=SAMPLING,
    ),
]
Temperature = Annotated[
    str,
    typer.Option(
        "--temperature",
        metavar="T",
        help="Divides the logits; above 0, lower is more typical; or one per level. Published settings: 0.95 with"
        " top-k 2048 for ImageNet, 0.9 for text, 1.0 with top-k 4096 for FFHQ.",
        rich_help_panel=SAMPLING,
    ),
]
GuidanceScale = Annotated[
    str,
    typer.Option(
        "--guidance",
        metavar="SCALE",
        help="Lead drawings away from those of no class or prompt: 1 is off, 2 to 4 holds closer to what was asked for;"
        " or one per level. Twice the rows. For models trained with --condition-dropout, or with --negative-prompt.",
        show_default="1, off",
        rich_help_panel=SAMPLING,
    ),
]
NegativePrompt = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt",
        metavar="TEXT",
        help="With --guidance: lead drawings away from those of this description.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="INTEGER",
        help="Image i is drawn with (seed, i), whatever the batch size. Files of --out-dir carry each picture's own"
        " seed in their PNG description: given here, it draws that picture alone.",
        rich_help_panel=SAMPLING,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write all pictures on one sheet: .png, .jpg or .webp.",
        show_default="sample.png if no other output is asked for",
        rich_help_panel=OUTPUT,
    ),
]
Scale = Annotated[
    int,
    typer.Option("--scale", metavar="N", min=1, max=16, help="Enlarge the sheet's pictures.", rich_help_panel=OUTPUT),
]
Captions = Annotated[
    bool,
    typer.Option(
        "--captions/--no-captions", help="Write under each picture of the sheet what it shows.", rich_help_panel=OUTPUT
    ),
]


class PictureFormat(str, Enum):
    """What the files of --out-dir are."""

    png = "png"
    webp = "webp"


Format = Annotated[
    PictureFormat,
    typer.Option(
        "--format", help="Of the files in --out-dir; webp is lossless too, and smaller.", rich_help_panel=OUTPUT
    ),
]
SaveCodes = Annotated[
    Path | None,
    typer.Option(
        "--save-codes",
        metavar="FILE",
        help="Write the codes to a safetensors file, for decode and --given-top.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Refiner = Annotated[
    Path | None,
    typer.Option(
        "--refiner",
        metavar="DIR",
        help="Second checkpoint of a globally conditioned model: it draws the bottom codes.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Shards = Annotated[
    Path | None,
    typer.Option(
        "--shards",
        metavar="DIR",
        help="Write WebDataset shards of pictures into this folder, with checksums. Stopped anywhere, the same command"
        " goes on with the shards that are missing. torchrun --nproc-per-node N -m hqtvae_fast.cli sample ... shares"
        " them out (--out means --shards then): the files are the same for any number of processes. Of a"
        " class-conditional model without --classes: --num-images in all, of all its classes in turn.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
ShardSize = Annotated[
    int, typer.Option("--shard-size", metavar="N", min=1, help="Pictures in a shard.", rich_help_panel=OUTPUT)
]
ClassifierOption = Annotated[
    str | None,
    typer.Option(
        "--classifier",
        metavar="NETWORK",
        help="Draw more than --num-images, and keep those whose class or prompt this network is surest of: a file"
        " (.pt2, .pt) or package.module:factory from uint8 [B, 3, R, R] to logits, imagenet: before it to resize and"
        " normalize; clip:DIR for prompts; efficientnet-lite0 (from a package).",
        show_default=False,
        rich_help_panel=REJECTION,
    ),
]
Accept = Annotated[
    float,
    typer.Option("--accept", metavar="SHARE", help="The share kept; the paper's is 0.25.", rich_help_panel=REJECTION),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--targets",
        metavar="LIST",
        help="The network's own class for each of --classes or --prompt, in their order.",
        show_default="the classes themselves",
        rich_help_panel=REJECTION,
    ),
]


def sampling_of(
    top_k: str | None, top_p: str | None, temperature: str, guidance: str = "1", negative_prompt: str | None = None
) -> dict[str, Any]:
    """The pipeline's arguments of these options, those of guidance where it is asked for."""
    given = {
        "top_k": parse_per_level("--top-k", top_k, int),
        "top_p": parse_per_level("--top-p", top_p, float),
        "temperature": parse_per_level("--temperature", temperature, float, none=False),
    }
    scale = parse_per_level("--guidance", guidance, float, none=False)
    led = {} if scale == 1 and negative_prompt is None else {"guidance_scale": scale}
    return given | led | ({} if negative_prompt is None else {"negative_prompt": negative_prompt})


@contextmanager
def named_as_options() -> Iterator[None]:
    """Errors of the pipeline, with this command's names for what they are about."""
    try:
        yield
    except ValueError as error:
        names = r"(?<![-\w])(" + "|".join(NAMES) + r")(?!\w)"  # what is an option already stays
        raise ValueError(re.sub(names, lambda match: NAMES[match[0]], str(error))) from error
