"""``hqtvae reconstruct``, ``encode`` and ``decode``: stage 1 alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hqtvae_fast.cli.checks import config_of
from hqtvae_fast.cli.options import (
    MACHINE,
    OUTPUT,
    AcceptFacts,
    BatchSize,
    BottomOnly,
    Checkpoint,
    Columns,
    Device,
    DType,
    Images,
    OutDir,
    Plan,
    TopOnly,
    batch_of,
    kept_level,
    open_pipeline,
)
from hqtvae_fast.cli.output import (
    check_file,
    check_folder,
    check_picture_file,
    count,
    progress,
    rate,
    unique_names,
    waiting,
)

if TYPE_CHECKING:
    from hqtvae_fast.cli.pictures import Picture

BAD_INPUT = 2
DEFAULT_SHEET = Path("decoded.png")
LEGIBLE = 192  # pixels of a picture whose caption can be read

LevelsShown = Annotated[
    bool,
    typer.Option(
        "--levels/--no-levels",
        help="Show each level decoded alone too: original, reconstruction, top only, ..., bottom only (figure 1).",
        rich_help_panel=OUTPUT,
    ),
]
ReconstructOut = Annotated[
    Path,
    typer.Option(
        "--out", metavar="FILE", help="The sheet (.png, .jpg, .webp): a row for each image.", rich_help_panel=OUTPUT
    ),
]
ReconstructScale = Annotated[
    int | None,
    typer.Option(
        "--scale",
        metavar="N",
        min=1,
        max=16,
        help="Enlarge the sheet's pictures.",
        show_default=f"to about {LEGIBLE} pixels",
        rich_help_panel=OUTPUT,
    ),
]
EncodeOut = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FILE",
        help="The safetensors file: level_0 (top), level_1, ..., integers (images, side, side); names as metadata.",
        rich_help_panel=OUTPUT,
    ),
]
Shards = Annotated[
    Path | None,
    typer.Option(
        "--shards",
        metavar="DIR",
        help="Write WebDataset shards of codes into this folder instead, made if absent. IMAGE may be shards then:"
        " train-{000..099}.tar, or a folder of them.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
ShardSize = Annotated[
    int,
    typer.Option("--shard-size", metavar="N", min=1, help="Pictures in a shard of codes.", rich_help_panel=OUTPUT),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        min=0,
        help="With --shards: processes that read pictures ahead; 0 reads them in between.",
        rich_help_panel=MACHINE,
    ),
]
DecodeOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write all pictures on one sheet: .png, .jpg or .webp.",
        show_default=f"{DEFAULT_SHEET} if --out-dir is not given",
        rich_help_panel=OUTPUT,
    ),
]
CodesArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CODES",
        help="A safetensors file, written by encode or by sample --save-codes, or shards that encode --shards wrote: a"
        " folder, a file, or a pattern such as 'codes/codes-{000000..000009}.tar'.",
        show_default=False,
    ),
]


def reconstruct(
    checkpoint: Checkpoint,
    images: Images,
    out: ReconstructOut = Path("reconstruct.png"),
    levels: LevelsShown = False,
    scale: ReconstructScale = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: DType = None,
    plan: Plan = "auto",
    accept_fact: AcceptFacts = None,
) -> None:
    """Encode and decode images: original and reconstruction side by side, and the PSNR in dB (higher is closer)."""
    check_picture_file(out)
    config = config_of(checkpoint).vae
    files = _files(images)
    with waiting("Starting"):
        from hqtvae_fast.cli.pictures import Reader
        from hqtvae_fast.cli.sheets import PictureWriter
        from hqtvae_fast.cli.stage1 import reconstruct_batch, show_quality

    scale = scale or max(1, round(LEGIBLE / config.resolution))
    columns = 2 + (config.num_levels if levels else 0)
    writer, reader = PictureWriter(out, None, columns, scale=scale, captions=True), Reader(config.resolution)
    pipe = open_pipeline(checkpoint, device, dtype, plan=plan, accept=accept_fact or [])
    pictures: list[Picture] = []
    quality: list[float] = []
    with progress("Reconstructing", len(files)) as advance:
        for batch in reader.batches(files, batch_of(pipe, batch_size), advance):
            for row, decibels in reconstruct_batch(pipe, batch, levels):
                for image, caption in row:
                    writer.add(image, "", caption=caption)
                quality.append(decibels)
            pictures += batch
    if pictures:
        writer.finish()
    reader.report()
    if pictures:
        show_quality(pictures, quality)
    if reader.failures:
        raise typer.Exit(BAD_INPUT)


def encode(
    checkpoint: Checkpoint,
    images: Images,
    out: EncodeOut = Path("codes.safetensors"),
    shards: Shards = None,
    shard_size: ShardSize = 10_000,
    workers: Workers = 0,
    batch_size: BatchSize = None,
    device: Device = None,
    plan: Plan = "auto",
    accept_fact: AcceptFacts = None,
) -> None:
    """Write the codes of images to a file, for decode and sample --given-top.

    Encoding is always in fp32. With --shards a whole set, shards of pictures among them, into shards of codes: stopped
    anywhere, the same command goes on with the shards that are missing.
    """
    if shards is not None:
        check_folder(shards)
        config_of(checkpoint)
        from hqtvae_fast.cli.encode_set import encode_set

        how = {"plan": plan, "accept": accept_fact or []}
        encode_set(checkpoint, images, shards, shard_size, workers, batch_size, device, how)
        return
    check_file(out)
    config_of(checkpoint)
    files = _files(images)
    with waiting("Starting"):
        from hqtvae_fast.cli.codes import write_codes
        from hqtvae_fast.cli.pictures import Reader
        from hqtvae_fast.cli.stage1 import encode_files

    pipe = open_pipeline(checkpoint, device, None, plan=plan, accept=accept_fact or [])
    reader = Reader(pipe.config.vae.resolution)
    started = time.perf_counter()
    with progress("Encoding", len(files)) as advance:
        levels, names = encode_files(pipe, reader, files, batch_of(pipe, batch_size), advance)
    seconds = time.perf_counter() - started
    if names:
        write_codes(out, levels, names, pipe.plan.id)
    reader.report()
    if names:
        maps = ", ".join("x".join(map(str, level.shape[1:])) for level in levels)
        typer.echo(rate(len(names), "image", seconds))
        typer.echo(f"wrote {out} (codes of {count(len(names), 'picture')}: {maps})")
    if reader.failures:
        raise typer.Exit(BAD_INPUT)


def _files(images: list[Path]) -> list[Path]:
    """The picture files; ValueError where none of them is there."""
    if not any(path.exists() for path in images):
        raise ValueError("; ".join(f"{path}: no such file" for path in images))
    with waiting("Starting"):
        from hqtvae_fast.cli.pictures import find_pictures

    return find_pictures(images)


def decode(
    checkpoint: Checkpoint,
    codes: CodesArgument,
    out: DecodeOut = None,
    out_dir: OutDir = None,
    columns: Columns = None,
    top_only: TopOnly = False,
    bottom_only: BottomOnly = False,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: DType = None,
    plan: Plan = "auto",
    accept_fact: AcceptFacts = None,
) -> None:
    """Turn a file of codes back into pictures."""
    keep = kept_level(top_only, bottom_only)
    if out is None and out_dir is None:
        out = DEFAULT_SHEET
    check_picture_file(out)
    check_folder(out_dir)
    config = config_of(checkpoint).vae
    with waiting("Starting"):
        from hqtvae_fast.cli.codes import leave_out, read_codes
        from hqtvae_fast.cli.sheets import PictureWriter

    stored = read_codes(codes, config)
    levels = leave_out(stored.levels, config.num_levels, keep)
    writer = PictureWriter(out, out_dir, columns)
    pipe = open_pipeline(checkpoint, device, dtype, plan=plan, accept=accept_fact or [])
    stored.check_vae(pipe.vae)
    missing = [f"level_{index}" for index, level in enumerate(stored.levels) if level is None]
    if missing and keep is None:
        typer.echo(f"warning: {codes} has no {' or '.join(missing)}, which is left out", err=True)
    names, size = unique_names(stored.names), batch_of(pipe, batch_size)
    seconds = 0.0
    with progress("Decoding", len(names)) as advance:
        for start in range(0, len(names), size):
            part = [None if level is None else level[start : start + size] for level in levels]
            started = time.perf_counter()
            pictures = pipe.decode(part, batch_size=size)
            seconds += time.perf_counter() - started
            for name, image in zip(names[start : start + size], pictures, strict=True):
                writer.add(image, name)
            advance(len(pictures))
    writer.finish()
    typer.echo(rate(len(names), "image", seconds))
