"""One update of training, either stage: images/s and memory.

python -m benchmarks.suites.train --stage 2 --preset S --device cuda --batch 64 --precision bf16
python -m benchmarks.suites.train --stage 1 --preset tiny --device cpu --batch 4

It is :class:`hqtvae_fast.train.stage1.Stage1` or ``Stage2`` as ``hqtvae train`` runs them, fed the same random pictures
each time: forward, backward, optimiser, codebooks or soft labels, words to tokens, and none of reading data, logging or
saving. ``--plain`` puts a loop of plain torch beside it (:mod:`benchmarks.entrants.plain_training`), in turns, both on
stored codes in stage 2; ``--profile`` says what takes the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

import hqtvae_fast
from benchmarks.entrants.ours import BENCHMARK_PRESETS, SEED, open_model
from benchmarks.entrants.plain_training import PlainStage1, PlainStage2
from benchmarks.measuring.calls import Entrant, Json, measure, show
from benchmarks.measuring.costs import costs, in_words
from benchmarks.measuring.environment import describe, pick_device
from benchmarks.measuring.schema import Results
from hqtvae_fast.config import VAEConfig
from hqtvae_fast.train.codes.cache import split_codes
from hqtvae_fast.train.data import Batch, Content
from hqtvae_fast.train.losses import Stage1Weights
from hqtvae_fast.train.stage1 import Stage1, Stage1Settings
from hqtvae_fast.train.stage2 import Stage2, Stage2Settings

STEPS = 10_000  # of the schedule: no run is near its end
PRECISIONS = ("no", "bf16", "fp16")
# Words for text models, and the embedded model's tokenizer to read them: this repository lacks the released one.
CAPTIONS = ("a tiger's face", "a red apple on a table", "a rocket", "an owl at night")
TOKENIZER = "assets/demo/tokenizer.json"
HERE = Path(hqtvae_fast.__file__).parent

Stage = Annotated[int, typer.Option(min=1, max=2, help="1: HQ-VAE and discriminator. 2: HQ-Transformer.")]
Preset = Annotated[str, typer.Option(help=f"Model of random weights: {', '.join(BENCHMARK_PRESETS)}.")]
DeviceName = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Pictures an update.")]
Precision = Annotated[str, typer.Option(help=f"Autocast: {', '.join(PRECISIONS)}.")]
Checkpointing = Annotated[
    bool, typer.Option("--activation-checkpointing", help="Stage 2: activations again, backward.")
]
Discriminator = Annotated[bool, typer.Option(help="Stage 1: against a discriminator, as the paper's.")]
Beside = Annotated[
    bool, typer.Option("--plain", help="Plain torch beside ours, in turns; stage 2 then trains on stored codes.")
]
Profiled = Annotated[bool, typer.Option("--profile", help="Name the three largest costs of an update.")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed updates, after two that do not count.")]


def train(
    stage: Stage = 2,
    preset: Preset = "S",
    device: DeviceName = "cpu",
    batch: BatchSize = 8,
    precision: Precision = "no",
    activation_checkpointing: Checkpointing = False,
    discriminator: Discriminator = True,
    plain: Beside = False,
    profile: Profiled = False,
    repeats: Repeats = 5,
    json: Json = None,
) -> None:
    """Time updates of training."""
    target = pick_device(device)
    if precision not in PRECISIONS:
        raise typer.BadParameter(
            f"expected one of {', '.join(PRECISIONS)}; got {precision!r}", param_hint="--precision"
        )
    how = (precision, activation_checkpointing, discriminator)
    entrants = [
        Entrant("hqtvae_fast", ours(make_task(stage, preset, target, *how, codes=plain), preset, batch, target))
    ]
    if plain:
        task = make_task(stage, preset, target, *how, codes=True)  # the same weights again
        entrants.append(Entrant("plain torch", beside(task, preset, batch, target, precision), ours=False))
    name = f"{preset}, stage {stage}, batch {batch}, {precision if precision != 'no' else 'fp32'}: update"
    name += ", activations recomputed" if activation_checkpointing and stage == 2 else ""
    name += ", no discriminator" if stage == 1 and not discriminator else ""
    name += ", stored codes" if stage == 2 and plain else ""
    work = {"model": preset, "batch": batch, "stage": stage, "precision": precision}
    rows = tuple(measure(name, entrants, batch, target, repeats, work))
    show(Results("train", describe(target, "suites.train"), rows), json)
    if plain:
        typer.echo(f"ours / plain torch: {rows[0].median / rows[1].median:.2f}")
    if plain and target.type == "cpu":
        found = cpu_quotient(entrants[0].run, entrants[1].run, repeats)
        typer.echo(f"ours / plain torch: {found:.2f} in CPU time of one thread, to which other processes add little")
    if profile:
        for entrant in entrants:
            typer.echo(f"{entrant.name}: {in_words(costs(entrant.run, target))}")


def ours(task: Stage1 | Stage2, preset: str, count: int, device: torch.device) -> Callable[[], dict[str, float]]:
    """One update of it, whose figures are read, as a run reads them."""
    batch, step = make_batch(preset, count, device, task.vae.config if _stored(task) else None), iter(range(STEPS))
    return lambda: {name: float(value) for name, value in task.update([batch], next(step)).items()}


def beside(
    task: Stage1 | Stage2, preset: str, count: int, device: torch.device, precision: str
) -> Callable[[], dict[str, float]]:
    """The same update of the same weights in plain torch."""
    batch = make_batch(preset, count, device, task.vae.config if _stored(task) else None)
    if isinstance(task, Stage1):
        discriminator = None if task.discriminator is None else task.accelerator.unwrap_model(task.discriminator)
        loop = PlainStage1(task.vae, discriminator, device, precision)
        return lambda: loop.update(batch.images)
    stage2, config = PlainStage2(task.transformer, device, precision), task.vae.config
    codes, condition = split_codes(batch.images, config.level_sides), task._condition(batch, [])
    return lambda: stage2.update(codes, condition)


def cpu_quotient(first: Callable[[], Any], second: Callable[[], Any], turns: int) -> float:
    """The median of first / second in CPU time of one thread, taken in turn, who begins changing, after two calls that
    do not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in (first, second, first, second):
            run()
        return median(_quotient(first, second, turn % 2 == 1) for turn in range(turns))
    finally:
        torch.set_num_threads(threads)


def _quotient(first: Callable[[], Any], second: Callable[[], Any], second_begins: bool) -> float:
    times = {}
    for run in (second, first) if second_begins else (first, second):
        began = time.process_time()
        run()
        times[run] = time.process_time() - began
    return times[first] / times[second]


def _stored(task: Stage1 | Stage2) -> bool:
    return isinstance(task, Stage2) and task.stored == "codes"


def make_task(
    stage: int,
    preset: str,
    device: torch.device,
    precision: str,
    checkpointing: bool,
    discriminator: bool = True,
    codes: bool = False,
) -> Stage1 | Stage2:
    """The stage with random weights, and the released codes' discriminator; without a perceptual loss, whose weights
    this repository does not have. ``codes``: stage 2 on stored codes, which are its labels too."""
    model = open_model(preset, None)
    # accelerate keeps the device and precision of a process's first accelerator.
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    torch.manual_seed(SEED)
    if stage == 1:
        weights = Stage1Weights(adversarial=Stage1Weights.adversarial if discriminator else 0.0)
        return Stage1(accelerator, model.vae, Stage1Settings(STEPS, weights=weights))
    assert model.transformer is not None
    transformer = model.transformer.set_activation_checkpointing(checkpointing)
    tokenizer = HERE / TOKENIZER if transformer.config.condition == "text" else None
    settings = Stage2Settings(STEPS, soft_labels=None) if codes else Stage2Settings(STEPS)
    stored: Content | None = "codes" if codes else None
    return Stage2(accelerator, model.vae, transformer, settings, tokenizer_file=tokenizer, stored=stored)


def make_batch(preset: str, count: int, device: torch.device, codes: VAEConfig | None = None) -> Batch:
    """Random pictures, with labels and captions. Of what words does not matter: all are padded to one length.
    ``codes``: random codes of this HQ-VAE in the pixels' place."""
    config = BENCHMARK_PRESETS[preset]
    draw = torch.Generator().manual_seed(SEED)
    side = config.vae.resolution
    images = torch.rand((count, 3, side, side), generator=draw) * 2 - 1
    if codes is not None:
        levels = zip(codes.level_sides, codes.codebook_sizes, strict=True)
        images = torch.cat([torch.randint(size, (count, side**2), generator=draw) for side, size in levels], dim=1)
    classes = config.transformer.num_classes if config.transformer is not None else 1
    labels = torch.randint(max(1, classes), (count,), generator=draw)
    captions = tuple(CAPTIONS[image % len(CAPTIONS)] for image in range(count))
    return Batch(images, tuple(map(str, range(count))), labels, captions, ()).to(device)


if __name__ == "__main__":
    typer.run(train)
