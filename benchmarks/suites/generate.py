"""End-to-end benchmark: draw codes (AR), decode them to pixels.

python -m benchmarks.suites.generate --preset S M L --batches 1 8 50 256 --device cuda --json out.json
python -m benchmarks.suites.generate --preset S --batch 50 --images 1000 --device cuda --released ../hqtransformer
python -m benchmarks.suites.generate --preset tiny --device cpu
python -m benchmarks.suites.generate --decode-only --preset S --device cpu --batch 8
python -m benchmarks.suites.generate --preset S --device cpu --script sampling_hqmodel.py --released ../hqtransformer
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.entrants.baselines import KINDS, default_baselines
from benchmarks.entrants.ours import BENCHMARK_PRESETS
from benchmarks.measuring.environment import describe, peaks_and_load, pick_device
from benchmarks.measuring.schema import write
from benchmarks.suites.decode import decode_only as time_decoding
from benchmarks.suites.outcomes import Outcome, tell_best, tell_whole, to_results, to_table, warning
from benchmarks.suites.script import time_script
from benchmarks.suites.sweep import Setting, check, measure
from hqtvae_fast.cli.many import ManyValues

STDERR = Console(stderr=True, highlight=False)
FILE_WIDTH = 140  # columns of a table that does not go to a terminal


class Dtype(str, Enum):
    """What our transformer and decoder compute in."""

    auto = "auto"
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


class Quantization(str, Enum):
    """What to round our transformer's matrices to."""

    int8 = "int8"
    fp8 = "fp8"


Presets = Annotated[
    list[str],
    typer.Option(
        "--preset", "--presets", help=f"Models of random weights: {', '.join(BENCHMARK_PRESETS)} (a toy, for CI)."
    ),
]
CheckpointDir = Annotated[
    Path | None, typer.Option("--checkpoint", help="Directory of a checkpoint, ours or released, instead of --preset.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Batches = Annotated[
    list[int],
    typer.Option("--batch", "--batches", min=1, help="Images drawn at once. The paper's throughput is at 50."),
]
Images = Annotated[
    int | None,
    typer.Option(min=1, help="Images a run makes in all; default: one batch on a CPU, 8 on a GPU. Paper: 1000."),
]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs of ours and the baselines, after a warm-up.")]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="auto: bf16 where the processor computes in it (CPU and GPU), else fp32.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice, one a core.")]
TopK = Annotated[int | None, typer.Option(help="Keep the k likeliest codes of each draw; default, as the paper: all.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest codes that sum to p; default: all.")]
Temperature = Annotated[float, typer.Option(help="Divides the logits.")]
Quantize = Annotated[Quantization | None, typer.Option("--quantize", help="Of ours: the transformer's matrices.")]
EngineText = Annotated[
    str, typer.Option("--engine", metavar="WORDS", help="Of ours: how the engine runs, such as 'tables, skip_query'.")
]
Baselines = Annotated[
    list[str] | None,
    typer.Option("--baselines", help=f"Some of {', '.join(KINDS)}, or none. Default: all; on a CPU not compile."),
]
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
Script = Annotated[
    str | None,
    typer.Option(
        "--script",
        help="Of the --released checkout: time it alone, through hqtvae_fast.compat, and the pipeline, in turns.",
    ),
]
Json = Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file, times in seconds.")]


def generate(
    preset: Presets = ["S"],  # noqa: B006 (typer copies it)
    checkpoint: CheckpointDir = None,
    device: Device = "cpu",
    batch: Batches = [8],  # noqa: B006
    images: Images = None,
    repeats: Repeats = 3,
    dtype: DtypeOption = Dtype.auto,
    threads: Threads = None,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = 1.0,
    quantize: Quantize = None,
    engine: EngineText = "",
    baselines: Baselines = None,
    released: ReleasedDir = None,
    released_repeats: ReleasedRepeats = 2,
    json: Json = None,
    decode_only: DecodeOnly = False,
    script: Script = None,
) -> None:
    """Time drawing codes and decoding them, separately and together, for each preset and batch.

    Each run makes --images images in batches of --batch, one batch after the other; where that is more than one batch,
    ours is also timed as a stream, which overlaps drawing and decoding.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    options = {"quantization": quantize and quantize.value, "engine": engine}
    models = [str(checkpoint)] if checkpoint is not None else preset
    try:
        if json is not None and not json.absolute().parent.is_dir():
            raise ValueError(f"--json: no directory {json.parent}")
        target = pick_device(device)
        if decode_only:
            if len(models) > 1 or len(batch) > 1 or dtype is Dtype.tf32:
                raise ValueError("--decode-only: expected one preset, one batch, and no TF32")
            time_decoding(models[0], checkpoint, target, batch[0], repeats, dtype.value, json)
            return
        if script is not None:
            if len(models) > 1 or len(batch) > 1:
                raise ValueError("--script: expected one preset and one batch")
            timed = max(1, (images or 2 * batch[0]) // batch[0])
            how = (target, batch[0], timed, repeats, dtype.value)
            time_script(script, released, models[0], checkpoint, *how, json)
            return
        setting = Setting(
            device=target,
            images=images,
            dtype=dtype.value,
            sampling=(temperature, top_k, top_p),
            repeats=(repeats, released_repeats),
            baselines=_pick_baselines(baselines, target),
            released=released,
            options=options,
        )
        for model in models:
            check(setting, model, checkpoint, batch)
    except ValueError as error:  # from a check of what was asked for: a sentence that says what to change
        STDERR.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
    _run(setting, models, checkpoint, batch, json)


def _run(setting: Setting, models: list[str], checkpoint: Path | None, batches: list[int], json: Path | None) -> None:
    """All models and batches; each is shown, and written with those before it, as soon as it is done."""
    peaks, load = peaks_and_load(setting.device)
    facts = {**describe(setting.device), **load}
    console = Console()
    console.width = console.width if console.is_terminal else FILE_WIDTH
    outcomes: list[Outcome] = []
    temperature, top_k, top_p = setting.sampling
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    for outcome in measure(setting, models, checkpoint, batches, peaks):
        outcomes.append(outcome)
        console.print(to_table(outcome, facts))
        _tell(console, outcome)
        if json is not None:
            write(to_results(outcomes, sampling, facts), json)
    for line in tell_best(outcomes):
        console.print(line)


def _tell(console: Console, outcome: Outcome) -> None:
    if (whole := tell_whole(outcome)) is not None:
        console.print(whole, highlight=False)
    for note in outcome.notes:
        STDERR.print(note, style="yellow", markup=False, soft_wrap=True)
    if (note := warning(outcome.entrants)) is not None:
        STDERR.print(f"warning: {note}", style="yellow")


def _pick_baselines(names: list[str] | None, device: torch.device) -> tuple[str, ...]:
    if names is None:
        return tuple(default_baselines(device))
    if names == ["none"]:
        return ()
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise ValueError(f"--baselines: expected some of {', '.join(KINDS)}, or none; got {', '.join(unknown)}")
    return tuple(dict.fromkeys(names))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=ManyValues)(generate)
    app()
