"""What options of a step gain (:class:`hqtvae_fast.engine.options.EngineOptions`): its time with each, and with none.

``hqtvae bench steps --preset S --device cpu --batch 1 --options tables skip_query``. All take turns, run by
run; weights and codes are random. A run draws nothing: it is the body and the head's passes of the first ``--steps``
steps, the first one by itself. On a GPU both are captured: issued one by one, a step's kernels take longer to launch
than to run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.entrants.ours import BENCHMARK_PRESETS
from benchmarks.options import run
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine.fused_step import FusedStep, make_tables
from hqtvae_fast.engine.graph import Replay
from hqtvae_fast.engine.options import EngineOptions, check_options
from hqtvae_fast.model import HQTransformer

NONE = "none"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds."""
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def _run(step: FusedStep, index: int, condition: Tensor | None, local_BTN: Tensor) -> None:
    h_BD = step.body(index, condition, local_BTN)
    for group in step.model.config.groups:
        step.head(h_BD, local_BTN[:, index], group)


def _inputs(config: TransformerConfig, batch: int) -> tuple[Tensor | None, Tensor]:
    shape = {"none": None, "class": (batch,)}.get(config.condition, (batch, config.prefix_length))
    smallest = min(config.codebook_sizes)
    local_BTN = torch.randint(smallest, (batch, config.num_steps, config.num_local))
    return None if shape is None else torch.zeros(shape, dtype=torch.int64), local_BTN


def _measure(
    steps: dict[str, FusedStep], inputs: tuple[Tensor | None, Tensor], which: range, repeats: int
) -> dict[str, list[float]]:
    """Milliseconds a step of these, by run, in turns; a first run of each does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    works = {name: _captured(step, inputs, which) for name, step in steps.items()}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            found = 1e3 * _timed(steps[name].model.norm.weight.device, work) / len(which)
            if repeat > 0:
                times[name].append(found)
    return times


def _captured(step: FusedStep, inputs: tuple[Tensor | None, Tensor], which: range) -> Callable[[], None]:
    def work() -> None:
        for index in which:
            _run(step, index, *inputs)

    replay = Replay(work, step.model.norm.weight.device)
    return lambda: replay(work)


def _line(what: str, times: dict[str, list[float]]) -> str:
    median = {name: statistics.median(values) for name, values in times.items()}
    plain = median.pop(NONE)
    told = [f"{NONE} {plain:.2f} ms (min {min(times[NONE]):.2f})"]
    for name, middle in median.items():
        told.append(f"{name} {middle:.2f} ms (min {min(times[name]):.2f}), {100 * (1 - middle / plain):.1f}% saved")
    return f"{what}: {'; '.join(told)}"


def _with(name: str, model: HQTransformer, batch: int) -> FusedStep:
    """One option."""
    if name != "tables":
        return FusedStep(model, batch, EngineOptions.read(name))
    start = time.perf_counter()
    tables = make_tables(model)
    _synchronise(model.norm.weight.device)
    print(f"tables: {tables.bytes / 1e6:.1f} MB, made in {time.perf_counter() - start:.2f} s")
    return FusedStep(model, batch, tables=tables)


class Numbers(str, Enum):
    """What weights and activations are held in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Option(str, Enum):
    """Of a step."""

    tables = "tables"
    skip_query = "skip_query"
    dependent_launch = "dependent_launch"
    streamed_rows = "streamed_rows"
    fused_norm = "fused_norm"
    kv_int8 = "kv=int8"


@torch.inference_mode()
def steps(
    preset: Annotated[str, typer.Option("--preset", metavar="NAME", help=", ".join(BENCHMARK_PRESETS))] = "S",
    device_name: Annotated[str, typer.Option("--device", metavar="NAME")] = "cpu",
    dtype: Annotated[Numbers, typer.Option("--dtype")] = Numbers.fp32,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Images at once.")] = 1,
    count: Annotated[int, typer.Option("--steps", metavar="N", min=2, help="Of a run.")] = 8,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="Runs of each.")] = 5,
    options: Annotated[list[Option], typer.Option("--options", help="Each by itself.")] = [  # noqa: B006
        Option.tables,
        Option.skip_query,
    ],
) -> None:
    """Time steps with options (tables of what depends on a code alone, ...) and without them."""
    device, names = torch.device(device_name), [option.value for option in options]
    if preset not in BENCHMARK_PRESETS:
        raise typer.BadParameter(f"--preset: expected one of {', '.join(BENCHMARK_PRESETS)}; got {preset!r}")
    try:
        check_options(EngineOptions.read(", ".join(names)), device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    config = BENCHMARK_PRESETS[preset].transformer
    assert config is not None
    with device:
        torch.manual_seed(0)
        model = HQTransformer(config).to(DTYPES[dtype.value]).eval()
        inputs = _inputs(config, batch)
    timed = {NONE: FusedStep(model, batch)}
    timed |= {name: _with(name, model, batch) for name in names}
    for what, which in (("first step", range(1)), ("a later step", range(1, count))):
        print(_line(what, _measure(timed, inputs, which, repeats)))


def main(arguments: Sequence[str] | None = None) -> None:
    run(steps, arguments)


if __name__ == "__main__":
    main()
