"""Encoding: pictures to codes.

python -m benchmarks.suites.encode --preset S --device cuda --batch 64
python -m benchmarks.suites.encode --preset tiny --device cpu --batch 4 --compile

Ours is ``HQVAE.encode`` on pictures that are on the device already: no reading, no resizing; on a GPU also captured, as
``hqtvae encode`` runs it. ``--compile`` adds torch.compile of the encoder with the same search behind it.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Annotated

import torch
import typer

from benchmarks.entrants.ours import open_model
from benchmarks.measuring.calls import Entrant, Json, measure, show
from benchmarks.measuring.environment import describe, pick_device
from benchmarks.measuring.schema import Results
from benchmarks.suites.train import BatchSize, DeviceName, Preset, Repeats, make_batch
from hqtvae_fast.engine.coding import EncodeReplay
from hqtvae_fast.model.cost import encode_flops

Compile = Annotated[bool, typer.Option("--compile", help="Time torch.compile's encoder as well.")]


def encode(
    preset: Preset = "S",
    device: DeviceName = "cpu",
    batch: BatchSize = 8,
    repeats: Repeats = 5,
    compile_too: Compile = False,
    json: Json = None,
) -> None:
    """Time pictures to codes."""
    target = pick_device(device)
    vae = open_model(preset, None).vae.to(target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = make_batch(preset, batch, target).images
    entrants = [Entrant("hqtvae_fast", lambda: vae.encode(images))]
    if target.type == "cuda":
        entrants.append(Entrant("hqtvae_fast, captured", partial(EncodeReplay(vae, batch), images)))
    if compile_too:
        other = copy.deepcopy(vae)
        other.encoder = torch.compile(other.encoder)
        entrants.append(Entrant("torch.compile", lambda: other.encode(images), ours=False))
    work = {"model": preset, "batch": batch, "flops": batch * encode_flops(vae.config)}
    rows = measure(f"{preset}, batch {batch}: encode", entrants, batch, target, repeats, work)
    show(Results("encode", describe(target, "suites.encode"), tuple(rows)), json)


if __name__ == "__main__":
    typer.run(encode)
