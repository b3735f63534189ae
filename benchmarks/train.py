"""One update of training, either stage: images/s and memory.

python -m benchmarks.train --stage 2 --preset S --device cuda --batch 64 --precision bf16
python -m benchmarks.train --stage 1 --preset tiny --device cpu --batch 4

It is :class:`hqtvae_fast.train.stage1.Stage1` or ``Stage2`` as ``hqtvae train`` runs them, fed the same random pictures
each time: forward, backward, optimiser, codebooks or soft labels, words to tokens, and none of reading data, logging or
saving.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

import hqtvae_fast
from benchmarks.calls import Entrant, Json, measure, show
from benchmarks.environment import describe
from benchmarks.generate import _pick_device
from benchmarks.ours import BENCHMARK_PRESETS, SEED, open_model
from benchmarks.schema import Results
from hqtvae_fast.train.data import Batch
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
Repeats = Annotated[int, typer.Option(min=1, help="Timed updates, after two that do not count.")]


def train(
    stage: Stage = 2,
    preset: Preset = "S",
    device: DeviceName = "cpu",
    batch: BatchSize = 8,
    precision: Precision = "no",
    activation_checkpointing: Checkpointing = False,
    repeats: Repeats = 5,
    json: Json = None,
) -> None:
    """Time updates of training."""
    target = _pick_device(device)
    if precision not in PRECISIONS:
        raise typer.BadParameter(
            f"expected one of {', '.join(PRECISIONS)}; got {precision!r}", param_hint="--precision"
        )
    task = make_task(stage, preset, target, precision, activation_checkpointing)
    pictures = make_batch(preset, batch, target)
    step = iter(range(STEPS))
    name = f"{preset}, stage {stage}, batch {batch}, {precision if precision != 'no' else 'fp32'}: update"
    name += ", activations recomputed" if activation_checkpointing and stage == 2 else ""
    work = {"model": preset, "batch": batch, "stage": stage, "precision": precision}
    entrant = Entrant("hqtvae_fast", lambda: task.update([pictures], next(step)))
    show(
        Results("train", describe(target, "train"), tuple(measure(name, [entrant], batch, target, repeats, work))), json
    )


def make_task(stage: int, preset: str, device: torch.device, precision: str, checkpointing: bool) -> Stage1 | Stage2:
    """The stage with random weights, and the released codes' discriminator; without a perceptual loss, whose weights
    this repository does not have."""
    model = open_model(preset, None)
    # accelerate keeps the device and precision of a process's first accelerator.
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    torch.manual_seed(SEED)
    if stage == 1:
        return Stage1(accelerator, model.vae, Stage1Settings(STEPS))
    assert model.transformer is not None
    transformer = model.transformer.set_activation_checkpointing(checkpointing)
    tokenizer = HERE / TOKENIZER if transformer.config.condition == "text" else None
    return Stage2(accelerator, model.vae, transformer, Stage2Settings(STEPS), tokenizer_file=tokenizer)


def make_batch(preset: str, count: int, device: torch.device) -> Batch:
    """Random pictures, with labels and captions. Of what words does not matter: all are padded to one length."""
    config = BENCHMARK_PRESETS[preset]
    draw = torch.Generator().manual_seed(SEED)
    side = config.vae.resolution
    images = torch.rand((count, 3, side, side), generator=draw) * 2 - 1
    classes = config.transformer.num_classes if config.transformer is not None else 1
    labels = torch.randint(max(1, classes), (count,), generator=draw)
    captions = tuple(CAPTIONS[image % len(CAPTIONS)] for image in range(count))
    return Batch(images, tuple(map(str, range(count))), labels, captions, ()).to(device)


if __name__ == "__main__":
    typer.run(train)
