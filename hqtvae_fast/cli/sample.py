"""``hqtvae sample``: draw pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hqtvae_fast.cli.asked import Files, Judged, Machine, Wanted
from hqtvae_fast.cli.checks import config_of, read_conditions
from hqtvae_fast.cli.options import (
    AcceptFacts,
    BatchSize,
    BottomOnly,
    Checkpoint,
    Columns,
    Device,
    DType,
    OutDir,
    Plan,
    Quantize,
    TopOnly,
    kept_level,
)
from hqtvae_fast.cli.output import check_file, check_folder, check_picture_file, waiting
from hqtvae_fast.cli.sample_options import (
    Accept,
    Captions,
    Classes,
    ClassifierOption,
    Format,
    GivenTop,
    GuidanceScale,
    Keep,
    KeptOf,
    NegativePrompt,
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
    sampling_of,
)
from hqtvae_fast.files import read_text
from hqtvae_fast.world import world

if TYPE_CHECKING:
    from hqtvae_fast.config import HQTVAEConfig

DEFAULT_OUT = Path("sample.png")


def sample(
    checkpoint: Checkpoint,
    classes: Classes = None,
    prompt: Prompt = None,
    prompts: PromptFile = None,
    num_images: NumImages = 1,
    given_top: GivenTop = None,
    image: KeptOf = None,
    keep: Keep = None,
    refiner: Refiner = None,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = "1.0",
    guidance: GuidanceScale = "1",
    negative_prompt: NegativePrompt = None,
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
    plan: Plan = "auto",
    accept_fact: AcceptFacts = None,
) -> None:
    """Draw pictures from classes, from prompts or from nothing, as the model was trained."""
    prompt = [*(prompt or []), *_read_prompts(prompts)]
    if classes and prompt:
        raise ValueError("--classes and --prompt: expected one of them; a model is conditioned on one or the other")
    level = kept_level(top_only, bottom_only)
    sampling = sampling_of(top_k, top_p, temperature, guidance, negative_prompt)
    quantized = None if quantize is None else quantize.value
    machine = Machine(checkpoint, device, dtype, refiner, quantized, plan, accept_fact or [])
    if world().size > 1:  # processes that torchrun has started cannot share a sheet
        out, shards = None, _shards_of_a_team(shards, out)
    if shards is not None:
        others = {"out": out, "out_dir": out_dir, "save_codes": save_codes, "given_top": given_top, "image": image}
        _check_shards_alone(level, **others, classifier=classifier)
    elif out is None and out_dir is None and save_codes is None:
        out = DEFAULT_OUT
    check_picture_file(out)
    check_folder(out_dir)
    check_folder(shards)
    check_file(save_codes)
    config = config_of(checkpoint, refiner)
    labels = read_conditions(checkpoint, config, classes or [], prompt, required=shards is None)
    sampling |= _completing(image, keep, config)
    wanted = Wanted(labels, prompt, num_images, seed, sampling, level, given_top)
    if shards is not None:
        with waiting("Starting"):
            from hqtvae_fast.cli.sample_set import sample_set

        with named_as_options():
            sample_set(machine, config, shards, wanted, shard_size=shard_size, batch_size=batch_size)
        return
    with waiting("Starting"):
        from hqtvae_fast.cli.drawing import draw

    files = Files(out, out_dir, save_codes, columns, scale, captions, picture_format.value)
    with named_as_options():
        draw(machine, config, wanted, Judged(classifier, accept, targets), files, batch_size)


def _read_prompts(file: Path | None) -> list[str]:
    """The lines that are not empty, none without a file; ValueError if there are none in one."""
    if file is None:
        return []
    found = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{file}: expected a description on each line; got none")
    return found


def _completing(image: Path | None, keep: str | None, config: HQTVAEConfig) -> dict[str, Any]:
    """The pipeline's arguments that complete a picture, or codes of a file."""
    if image is None:
        return {} if keep is None else {"keep": keep}
    if image.suffix != ".safetensors":
        return {"image": image, "keep": keep}
    with waiting("Starting"):
        from hqtvae_fast.cli.codes import read_codes

    levels = read_codes(image, config.vae).levels
    if any(level is None for level in levels):
        raise ValueError(f"--image: expected codes of all {len(levels)} levels in {image}; found some alone")
    return {"image": levels, "keep": keep}


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
