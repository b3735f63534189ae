"""End-to-end benchmark: draw codes (AR), decode them to pixels.

python -m benchmarks.generate --preset S --device cpu --batch 8
python -m benchmarks.generate --decode-only --preset S --device cpu --batch 8
python -m benchmarks.generate --preset S --device cuda --batch 50 --released ../hqtransformer --json out.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.decode import decode_only as time_decoding
from benchmarks.environment import PeakMemory, describe
from benchmarks.ours import BENCHMARK_PRESETS, Ours, open_model, same_for_all
from benchmarks.released import Released, check_supported, import_released
from benchmarks.report import Entrant, Workload, to_results, to_table, warning
from benchmarks.schema import write
from benchmarks.timing import Sampler, Timing, batch_sizes, time_in_turns, time_run

STDERR = Console(stderr=True, highlight=False)


class Dtype(str, Enum):
    """What our transformer and decoder compute in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


Preset = Annotated[str, typer.Option(help=f"Model of random weights: {', '.join(BENCHMARK_PRESETS)} (a toy, for CI).")]
CheckpointDir = Annotated[
    Path | None, typer.Option("--checkpoint", help="Directory of a checkpoint, ours or released, instead of --preset.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Batch = Annotated[int, typer.Option(min=1, help="Images drawn at once. The paper's throughput is at 50.")]
Images = Annotated[int | None, typer.Option(min=1, help="Images a run makes in all; default: one batch. Paper: 1000.")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs of ours, after one batch of warm-up.")]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="auto: bf16 where the processor computes in it (CPU and GPU), else fp32.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice, one a core.")]
TopK = Annotated[int | None, typer.Option(help="Keep the k likeliest codes of each draw; default, as the paper: all.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest codes that sum to p; default: all.")]
Temperature = Annotated[float, typer.Option(help="Divides the logits.")]
ReleasedDir = Annotated[
    Path | None,
    typer.Option(
        "--released",
        help="Checkout of github.com/kakaobrain/hqtransformer: its sampler and decoder are timed in turns with ours.",
    ),
]
ReleasedRepeats = Annotated[int, typer.Option(min=1, help="Timed runs of the released implementation.")]
DecodeOnly = Annotated[
    bool,
    typer.Option(
        "--decode-only", help="Time decoding alone, beside the same weights in plain torch in fp32; random codes."
    ),
]
Json = Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file, times in seconds.")]


def generate(
    preset: Preset = "S",
    checkpoint: CheckpointDir = None,
    device: Device = "cpu",
    batch: Batch = 8,
    images: Images = None,
    repeats: Repeats = 3,
    dtype: DtypeOption = Dtype.auto,
    threads: Threads = None,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = 1.0,
    released: ReleasedDir = None,
    released_repeats: ReleasedRepeats = 2,
    json: Json = None,
    decode_only: DecodeOnly = False,
) -> None:
    """Time drawing codes and decoding them, separately and together.

    Each run makes --images images in batches of --batch, one batch after the other: no overlap of AR and decoding.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    sizes = batch_sizes(images or batch, batch)
    try:
        if json is not None and not json.absolute().parent.is_dir():
            raise ValueError(f"--json: no directory {json.parent}")
        target = _pick_device(device)
        if decode_only:
            time_decoding(preset, checkpoint, target, batch, repeats, dtype.value, json)
            return
        model = open_model(preset, checkpoint)
        params = same_for_all(model.config.vae, temperature, top_k, top_p)
        makers: list[Callable[[], Sampler]] = [lambda: Ours(model, target, dtype.value, params)]
        if released is not None:
            stage2, modules = check_supported(model.config, sizes), import_released(released)
            makers.append(lambda: Released(modules, model.config.vae, stage2, target, params))
    except ValueError as error:  # from a check of what was asked for: a sentence that says what to change
        STDERR.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
    facts = describe(target)
    samplers, memory = _prepare(makers, target, sizes[0])
    timings = _time(samplers, sizes, (repeats, released_repeats)[: len(samplers)])
    workload = Workload(str(checkpoint or preset), sum(sizes), batch, samplers[0].steps * len(sizes))
    entrants = [Entrant.of(*row) for row in zip(samplers, memory, timings, strict=True)]
    Console().print(to_table(workload, entrants, facts))
    if (note := warning(entrants)) is not None:
        STDERR.print(f"warning: {note}", style="yellow")
    if json is not None:
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        write(to_results(workload, sampling, entrants, facts), json)


def _pick_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu, cuda or cuda:N; got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f"--device {name}: torch {torch.__version__} sees {count} CUDA devices here")
        torch.cuda.set_device(device)
    return device


def _prepare(
    makers: Sequence[Callable[[], Sampler]], device: torch.device, count: int
) -> tuple[list[Sampler], list[int | None]]:
    """Make each sampler and run one batch with it, untimed, before the next is made; with each one's peak memory."""
    samplers: list[Sampler] = []
    memory: list[int | None] = []
    for make in makers:
        meter = PeakMemory(device)
        sampler = make()
        _say(sampler, "warm-up", time_run(sampler, [count]))
        memory.append(meter.read() if device.type == "cuda" or not samplers else None)
        samplers.append(sampler)
    return samplers, memory


def _time(samplers: Sequence[Sampler], sizes: list[int], turns: Sequence[int]) -> list[list[Timing]]:
    def run(index: int) -> Timing:
        timing = time_run(samplers[index], sizes)
        _say(samplers[index], "timed", timing)
        return timing

    return time_in_turns(run, turns)


def _say(sampler: Sampler, what: str, timing: Timing) -> None:
    STDERR.print(f"{sampler.name}, {what}: AR {timing.ar:.3f} s, decode {timing.decode:.3f} s", style="dim")


if __name__ == "__main__":
    typer.run(generate)
