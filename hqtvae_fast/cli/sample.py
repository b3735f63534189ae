"""``hqtvae sample``: draw pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hqtvae_fast.cli.options import (
    BatchSize,
    BottomOnly,
    Checkpoint,
    Columns,
    DependentLaunch,
    Device,
    DType,
    FusedDraw,
    Graphs,
    OutDir,
    Overlap,
    Quantize,
    SkipQuery,
    Tables,
    TopOnly,
    batch_of,
    kept_level,
    parse_classes,
    parse_per_level,
)
from hqtvae_fast.cli.output import check_file
from hqtvae_fast.cli.sample_options import (
    Accept,
    Captions,
    Classes,
    ClassifierOption,
    Format,
    GivenTop,
    NumImages,
    Out,
    PictureFormat,
    Prompt,
    PromptFile,
    Refiner,
    SaveCodes,
    Scale,
    Seed,
    Shards,
    ShardSize,
    Targets,
    Temperature,
    TopK,
    TopP,
    named_as_options,
)
from hqtvae_fast.files import read_text

DEFAULT_OUT = Path("sample.png")
MAX_ROW = 16  # of a condition's pictures, by default


def sample(
    checkpoint: Checkpoint,
    classes: Classes = None,
    prompt: Prompt = None,
    prompts: PromptFile = None,
    num_images: NumImages = 1,
    given_top: GivenTop = None,
    refiner: Refiner = None,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = "1.0",
    seed: Seed = 0,
    out: Out = None,
    out_dir: OutDir = None,
    picture_format: Format = PictureFormat.png,
    columns: Columns = None,
    scale: Scale = 1,
    captions: Captions = False,
    top_only: TopOnly = False,
    bottom_only: BottomOnly = False,
    save_codes: SaveCodes = None,
    classifier: ClassifierOption = None,
    accept: Accept = 0.25,
    targets: Targets = None,
    shards: Shards = None,
    shard_size: ShardSize = 1000,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: DType = None,
    quantize: Quantize = None,
    graphs: Graphs = None,
    tables: Tables = False,
    fused_draw: FusedDraw = False,
    overlap: Overlap = None,
    dependent_launch: DependentLaunch = False,
    skip_query: SkipQuery = False,
) -> None:
    """Draw pictures from classes, from prompts or from nothing, as the model was trained."""
    prompt = [*(prompt or []), *_read_prompts(prompts)]
    if classes and prompt:
        raise ValueError("--classes and --prompt: expected one of them; a model is conditioned on one or the other")
    labels, keep = parse_classes(classes or []), kept_level(top_only, bottom_only)
    sampling = {
        "top_k": parse_per_level("--top-k", top_k, int),
        "top_p": parse_per_level("--top-p", top_p, float),
        "temperature": parse_per_level("--temperature", temperature, float),
    }
    engine: dict[str, Any] = {"graphs": graphs, "tables": tables, "fused_draw": fused_draw, "overlap": overlap}
    engine |= {"dependent_launch": dependent_launch, "skip_query": skip_query}
    engine["quantization"] = None if quantize is None else quantize.value
    from hqtvae_fast.cli.sample_set import Machine, Wanted, sample_set

    machine = Machine(checkpoint, device, dtype, refiner, engine)
    if "WORLD_SIZE" in os.environ:  # set by torchrun, whose processes cannot share a sheet
        out, shards = None, _shards_of_a_team(shards, out)
    if shards is not None:
        others = {"out": out, "out_dir": out_dir, "save_codes": save_codes, "given_top": given_top}
        _check_shards_alone(keep, **others, classifier=classifier)
        wanted = Wanted(labels, prompt, num_images, seed)
        with named_as_options():
            sample_set(machine, shards, wanted, sampling, shard_size=shard_size, batch_size=batch_size)
        return
    from hqtvae_fast.cli.codes import read_codes
    from hqtvae_fast.cli.drawing import draw_all, save_drawn
    from hqtvae_fast.cli.plan import plan
    from hqtvae_fast.cli.reject import open_rejection
    from hqtvae_fast.cli.sheets import PictureWriter

    if out is None and out_dir is None and save_codes is None:
        out = DEFAULT_OUT
    writer = PictureWriter(out, out_dir, columns, scale=scale, captions=captions, kind=picture_format.value)
    check_file(save_codes)
    with named_as_options():
        pipe = machine.open(device)
    given = None if given_top is None else read_codes(given_top, pipe.vae)
    with named_as_options():
        batch = batch_of(pipe, batch_size)
        rejection = open_rejection(classifier, accept, targets, num_images, batch, pipe.device)
        of_each = num_images if rejection is None else rejection.drawn
        drawings = plan(labels, prompt, given, of_each, seed)
        if rejection is not None:
            rejection.check(drawings, keep)
        if columns is None and 1 < num_images <= MAX_ROW and of_each < len(drawings):
            writer.columns = num_images  # a row for each subject
        drawings, codes = draw_all(pipe, drawings, sampling, keep, writer, batch, save_codes, rejection)
    writer.finish()
    save_drawn(save_codes, drawings, codes)


def _read_prompts(file: Path | None) -> list[str]:
    """The lines that are not empty, none without a file; ValueError if there are none in one."""
    if file is None:
        return []
    found = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{file}: expected a description on each line; got none")
    return found


def _check_shards_alone(level: int | None, **others: Any) -> None:
    """ValueError where something is asked for, by its option's name, that shards do not go with."""
    if level is not None or any(other is not None for other in others.values()):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ValueError(f"--shards: expected neither {names} nor a level alone")


def _shards_of_a_team(shards: Path | None, out: Path | None) -> Path:
    """The folder that several processes write to; ValueError if none was named."""
    folder = shards or out
    if folder is None:
        raise ValueError("--shards: expected a folder, as several processes draw together; got none")
    return folder
