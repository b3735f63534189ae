"""``hqtvae figure``: the paper's figures, and others, of any checkpoint."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hqtvae_fast.cli.checks import check_drawing, config_of, read_conditions
from hqtvae_fast.cli.options import (
    Checkpoint,
    Device,
    DType,
    open_pipeline,
)
from hqtvae_fast.cli.output import check_picture_file, picture_kind, progress, waiting
from hqtvae_fast.cli.sample_options import Classes, NumImages, Prompt, Seed, Temperature, TopK, TopP, sampling_of
from hqtvae_fast.files import write_file

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from hqtvae_fast.cli.drawings import Drawing
    from hqtvae_fast.evaluate.figures.neighbours import Distance
    from hqtvae_fast.pipeline import HQTVAEPipeline

Out = Annotated[
    Path,
    typer.Option("--out", metavar="FILE", help="What to write: .png, .webp or .jpg, which is the smallest."),
]
ImageFiles = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="Picture files, or folders of them.", show_default=False),
]
Training = Annotated[
    list[str], typer.Option("--training", metavar="PATH", help="The training pictures: a folder, shards, an .npz.")
]
PicturesOption = Annotated[
    list[str],
    typer.Option(
        "--pictures",
        metavar="PATH",
        help="Pictures to encode: a folder, shards, an .npz. Or the codes of a set, shards that encode --shards wrote.",
    ),
]

figure = typer.Typer(no_args_is_help=True, help="Draw the paper's figures, and others, of any checkpoint.")


@figure.command(epilog='Example: hqtvae figure levels demo --prompt "tiger face, 3d" --prompt "pizza, flat"')
def levels(
    checkpoint: Checkpoint,
    classes: Classes = None,
    prompt: Prompt = None,
    num_images: NumImages = 1,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = "1.0",
    seed: Seed = 0,
    out: Out = Path("levels.png"),
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Figure 1: drawn pictures from the top codes alone, the finer codes alone, and all of them."""
    check_picture_file(out)
    sampling, config = sampling_of(top_k, top_p, temperature), config_of(checkpoint)
    labels = read_conditions(checkpoint, config, classes or [], prompt or [])
    with waiting("Starting"):
        from hqtvae_fast.cli.drawings import arguments, plan
        from hqtvae_fast.evaluate.figures.levels import level_rows

    drawings = plan(labels, prompt or [], None, num_images, seed, config.classes)
    check_drawing(config, arguments(drawings), sampling)
    pipe = open_pipeline(checkpoint, device, dtype)
    codes = _draw(pipe, drawings, sampling)
    captions = [drawing.caption() for drawing in drawings]
    _write(out, level_rows(pipe, codes, captions if any(captions) else ()))


@figure.command(epilog="Example: hqtvae figure resampling shuffle=runs/a/model average=runs/b/model --image photos/")
def resampling(
    models: Annotated[
        list[str], typer.Argument(metavar="NAME=CHECKPOINT...", help="Stage 1 with each way of resampling.")
    ],
    image: ImageFiles = None,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Pictures, evenly spread.")] = 8,
    pictures: Annotated[
        list[str] | None, typer.Option("--pictures", metavar="PATH", help="Or shards, an .npz.", show_default=False)
    ] = None,
    out: Out = Path("resampling.png"),
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Figure 3: what the top codes alone give of pictures, with each way of resampling."""
    check_picture_file(out)
    if (image is None) == (pictures is None):
        raise ValueError("expected either --image or --pictures")
    named = [model.partition("=") for model in models]
    if not all(name and path for name, _, path in named):
        raise ValueError(f"expected NAME=CHECKPOINT; got {', '.join(models)}")
    for _, _, path in named:
        config_of(path)
    with waiting("Starting"):
        from hqtvae_fast.cli.pictures import find_pictures
        from hqtvae_fast.evaluate.figures.levels import resampling_rows
        from hqtvae_fast.pictures.images import open_image

    shown = [open_image(file) for file in find_pictures(image)] if image else _some(pictures or [], None, count)[0]
    pipes = {name.replace("\\n", "\n"): open_pipeline(path, device, dtype) for name, _, path in named}
    _write(out, resampling_rows(pipes, shown))


@figure.command(epilog='Example: hqtvae figure redraw demo --prompt "tiger face, 3d" --draws 8')
def redraw(
    checkpoint: Checkpoint,
    classes: Classes = None,
    prompt: Prompt = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", metavar="FILE", help="Keep this picture's top codes, not a drawn one's."),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", metavar="N", min=1, help="Draws of the finer codes.")] = 6,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = "1.0",
    seed: Seed = 0,
    out: Out = Path("redraw.png"),
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Figure 4b: one picture's top codes, and many draws of the finer ones."""
    check_picture_file(out)
    sampling, config = sampling_of(top_k, top_p, temperature), config_of(checkpoint)
    labels = read_conditions(checkpoint, config, classes or [], prompt or [])
    if len(labels) + len(prompt or []) > 1:
        raise ValueError(f"expected one class or prompt; got {len(labels) + len(prompt or [])}")
    with waiting("Starting"):
        from hqtvae_fast.cli.drawings import arguments, plan
        from hqtvae_fast.evaluate.figures.levels import redraw_rows
        from hqtvae_fast.pictures.images import open_image, to_tensor

    drawings = plan(labels, prompt or [], None, 1, seed, config.classes)
    check_drawing(config, arguments(drawings), sampling)
    kept = None if image is None else to_tensor([open_image(image)], config.vae.resolution)
    pipe = open_pipeline(checkpoint, device, dtype)
    codes = _draw(pipe, drawings, sampling) if kept is None else pipe.encode(kept)
    condition = {"class_labels": drawings[0].label, "prompt": drawings[0].prompt}
    _write(out, redraw_rows(pipe, codes, condition, sampling, draws, seed + 1, drawings[0].caption()))


@figure.command(epilog="Example: hqtvae figure usage demo --pictures val.tar")
def usage(
    checkpoint: Checkpoint,
    pictures: PicturesOption,
    out: Out = Path("usage.png"),
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Pictures at a time.")] = 64,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=0, help="Processes that read ahead.")] = 0,
    device: Device = None,
) -> None:
    """How often each code is chosen for a set of pictures, by level, with perplexity."""
    check_picture_file(out)
    config = config_of(checkpoint).vae
    with waiting("Starting"):
        from hqtvae_fast.evaluate import open_pictures
        from hqtvae_fast.evaluate.code_use import open_codes, use_of_pictures, use_of_stored
        from hqtvae_fast.evaluate.figures.plots import usage_plot
        from hqtvae_fast.train.data import are_codes

    if are_codes(pictures):
        pipe = open_pipeline(checkpoint, device, None)
        codes = open_codes(pictures, pipe.vae)
        with progress("Counting", len(codes)) as advance:
            use = use_of_stored(codes, config, advance=advance)
    else:
        source = open_pictures(pictures, config.resolution)
        pipe = open_pipeline(checkpoint, device, None)
        with progress("Encoding", len(source)) as advance:
            use = use_of_pictures(pipe, source, batch=batch_size, workers=workers, advance=advance)
    _write(out, usage_plot(use.counts))


@figure.command(epilog="Example: hqtvae figure neighbours samples/ --training train.tar --count 8")
def neighbours(
    samples: Annotated[
        list[str], typer.Argument(metavar="SAMPLES...", help="Drawn pictures: a folder, shards, an .npz.")
    ],
    training: Training,
    distance: Annotated[
        str,
        typer.Option("--distance", metavar="NAME", help="pixels, or a network as in evaluate --features."),
    ] = "pixels",
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Drawn pictures, evenly spread.")] = 8,
    nearest: Annotated[int, typer.Option("--nearest", metavar="K", min=1, help="Neighbours of each.")] = 3,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=0, help="Processes that read ahead.")] = 0,
    out: Out = Path("neighbours.png"),
    device: Device = None,
) -> None:
    """Drawn pictures above the training pictures nearest to them: recall or invention."""
    check_picture_file(out)
    with waiting("Starting"):
        import torch

        from hqtvae_fast.evaluate import open_pictures
        from hqtvae_fast.evaluate.figures import neighbours as drawing
        from hqtvae_fast.pictures.images import to_tensor

    drawn, captions = _some(samples, None, count)
    side = drawn[0].width
    known, measured = open_pictures(training, side), _distance(distance, side, device)
    pixels = (to_tensor(drawn, side) * 127.5 + 127.5).round().to(torch.uint8)
    with progress("Comparing", len(known)) as advance:
        found = drawing.nearest(pixels, known, measured, nearest, workers=workers, advance=advance)
    _write(out, drawing.neighbour_rows(drawn, captions, known, found, measured))
    apart = ", ".join(measured.form.format(distance) for distance in found.distances[:, 0].tolist())
    typer.echo(f"distance: {measured.name}; of the nearest: {apart}")


@figure.command(epilog="Example: hqtvae figure speed batch-8=eval.json,results.json quarter-kept=eval-quarter.json,6.1")
def speed(
    points: Annotated[
        list[str],
        typer.Argument(
            metavar="LABEL=EVALUATION.json,SPEED...",
            help="What evaluate --out wrote, and images/s: a number, or a results file of bench generate.",
        ),
    ],
    metric: Annotated[str, typer.Option("--metric", metavar="KEY", help="frechet, precision, recall, ...")] = "frechet",
    out: Out = Path("speed.png"),
) -> None:
    """Quality over speed, a point for each way of drawing."""
    check_picture_file(out)
    with waiting("Starting"):
        from hqtvae_fast.evaluate.figures.plots import read_point, speed_plot

    _write(out, speed_plot([read_point(point, metric) for point in points]))


@figure.command(epilog="Example: hqtvae figure losses runs/mine, or losses slow=runs/a fast=runs/b --out rates.png")
def losses(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN...",
            help="Folders of training runs, laid over each other; a run of both stages gives two.",
        ),
    ],
    out: Out = Path("losses.png"),
) -> None:
    """What runs logged: losses, PSNR, codes in use and the learning rate, of training and of held-out pictures."""
    check_picture_file(out)
    with waiting("Starting"):
        from hqtvae_fast.train.shown.curves import losses_plot, named_runs

    _write(out, losses_plot(named_runs(runs)))


def _draw(pipe: HQTVAEPipeline, drawings: list[Drawing], sampling: dict[str, Any]) -> tuple[Tensor, ...]:
    from hqtvae_fast.cli.drawings import arguments

    return pipe(**arguments(drawings), **sampling, output_type="codes").codes


def _some(paths: list[str], resolution: int | None, count: int) -> tuple[list[Image.Image], list[str]]:
    """At most ``count`` pictures of a set, evenly spread, and what each shows, in words."""
    from hqtvae_fast.evaluate import open_pictures
    from hqtvae_fast.evaluate.figures.neighbours import picture_at

    source = open_pictures(paths, resolution)
    count = min(count, len(source))
    chosen = [place * len(source) // count for place in range(count)]
    return [picture_at(source, index) for index in chosen], [source.shows(index) for index in chosen]


def _distance(name: str, side: int, device: str | None) -> Distance:
    import torch

    from hqtvae_fast.evaluate import open_extractor
    from hqtvae_fast.evaluate.figures.neighbours import feature_distance, pixel_distance

    if name == "pixels":
        return pixel_distance(side)
    return feature_distance(open_extractor(name, device or ("cuda" if torch.cuda.is_available() else "cpu")))


def _write(out: Path, picture: Image.Image | bytes) -> None:
    from PIL import Image

    from hqtvae_fast.cli.sheets import ENCODERS

    image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
    write_file(out, ENCODERS[picture_kind(out)](image, None))
    typer.echo(f"wrote {out}")
