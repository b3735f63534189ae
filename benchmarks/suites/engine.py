"""Whole batches with the engine run in several ways (:class:`hqtvae_fast.engine.options.EngineOptions`), or by plans:
drawn, decoded, and as a stream of pictures, in turns, beside the engine as it is by itself.

python -m benchmarks.suites.engine --preset S --device cuda --batch 50 --what stream --engine overlap=priority
python -m benchmarks.suites.engine --preset S --device cuda --batch 256 --what decode --engine chunk=64 cudnn_benchmark
python -m benchmarks.suites.engine --preset tiny --device cpu --batch 2 --engine uncaptured
python -m benchmarks.suites.engine --preset S --device cpu --batch 1 8 --what draw decode --plan S.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.entrants.ours import Ours, open_model, same_for_all
from benchmarks.measuring.calls import Entrant, Json, measure, show
from benchmarks.measuring.environment import describe, pick_device
from benchmarks.measuring.schema import Results, Row
from benchmarks.options import run
from benchmarks.suites.train import DeviceName, Preset
from hqtvae_fast.engine.options import EngineOptions, check_options

AS_IT_IS = "as it is"
STREAMED = 4  # batches


class What(str, Enum):
    """Of a batch."""

    draw = "draw"
    decode = "decode"
    stream = "stream"


Batches = Annotated[list[int], typer.Option("--batch", min=1, metavar="N", help="Images at once.")]
Whats = Annotated[list[What], typer.Option("--what", help="To codes, to pixels, or to pictures on the host.")]
Ways = Annotated[list[str], typer.Option("--engine", metavar="WORDS", help="A way each, as a plan has it.")]
Plans = Annotated[list[Path], typer.Option("--plan", metavar="FILE", help="A plan each, as hqtvae tune writes it.")]
AcceptFacts = Annotated[
    list[str], typer.Option("--accept-fact", metavar="FACT", help="Take the plans though this fact differs here.")
]
Repeats = Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="Timed runs of each way.")]


@torch.inference_mode()
def engine(
    preset: Preset = "S",
    device: DeviceName = "cuda",
    batch: Batches = [50],  # noqa: B006
    what: Whats = [What.draw, What.decode, What.stream],  # noqa: B006
    ways: Ways = [],  # noqa: B006
    plans: Plans = [],  # noqa: B006
    accept_fact: AcceptFacts = [],  # noqa: B006
    repeats: Repeats = 5,
    json: Json = None,
) -> None:
    """Time whole batches with the engine run in several ways, or by plans, in turns."""
    target = pick_device(device)
    for text in ways:
        try:
            check_options(EngineOptions.read(text), target)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    planned = {file.name: _sampler(preset, target, plan=file, accept=accept_fact) for file in plans}  # may be refused
    samplers = {text or AS_IT_IS: _sampler(preset, target, text) for text in ("", *dict.fromkeys(ways))} | planned
    rows: list[Row] = []
    for count in batch:
        for kind in what:
            images = count * (STREAMED if kind is What.stream else 1)
            entrants = [Entrant(name, _work(ours, kind, count)) for name, ours in samplers.items()]
            name = f"{preset}, batch {count}: {kind.value}"
            rows += measure(name, entrants, images, target, repeats, {"model": preset, "batch": count})
            show(Results("engine", describe(target, "suites.engine"), tuple(rows)), json)


def _sampler(
    preset: str, device: torch.device, text: str = "", plan: Path | None = None, accept: Sequence[str] = ()
) -> Ours:
    checkpoint = open_model(preset, None)
    params = same_for_all(checkpoint.vae.config, 1.0, None, None)
    return Ours(checkpoint, device, "auto", params, engine=text, plan=plan, accept=accept)


def _work(ours: Ours, kind: What, count: int) -> Callable[[], Any]:
    if kind is What.draw:
        return lambda: ours.draw(count)
    if kind is What.stream:
        return lambda: ours.stream([count] * STREAMED)
    codes = ours.draw(count)
    return lambda: ours.decode(codes)


def main() -> None:
    run(engine, sys.argv[1:])


if __name__ == "__main__":
    main()
