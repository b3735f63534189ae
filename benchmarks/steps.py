"""What options of a step gain (:class:`hqtvae_fast.engine.step.StepOptions`): its time with each, and with none.

``python -m benchmarks.steps --preset S --device cpu --batch 1 --options tables skip_query``. All take turns, run by
run; weights and codes are random. A run draws nothing: it is the body and the head's passes of the first ``--steps``
steps.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.ours import BENCHMARK_PRESETS
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine.fused_step import FusedStep, make_tables
from hqtvae_fast.engine.options import EngineOptions, check_options
from hqtvae_fast.engine.step import StepOptions
from hqtvae_fast.model import HQTransformer

NONE = "none"
OPTIONS = ("tables", "skip_query", "dependent_launch")
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
    steps: dict[str, FusedStep], inputs: tuple[Tensor | None, Tensor], count: int, repeats: int
) -> dict[str, list[list[float]]]:
    """Milliseconds of each of the first ``count`` steps, by run, in turns; a first run of each does not count."""
    times: dict[str, list[list[float]]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            device = step.model.norm.weight.device
            found = [1e3 * _timed(device, functools.partial(_run, step, index, *inputs)) for index in range(count)]
            if repeat > 0:
                times[name].append(found)
    return times


def _line(what: str, times: dict[str, list[float]]) -> str:
    median = {name: statistics.median(values) for name, values in times.items()}
    plain = median.pop(NONE)
    told = [f"{NONE} {plain:.2f} ms (min {min(times[NONE]):.2f})"]
    for name, middle in median.items():
        told.append(f"{name} {middle:.2f} ms (min {min(times[name]):.2f}), {100 * (1 - middle / plain):.1f}% saved")
    return f"{what}: {'; '.join(told)}"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.steps", description="Steps with and without options.")
    parser.add_argument("--preset", default="S", choices=BENCHMARK_PRESETS)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--batch", default=1, type=int)
    parser.add_argument("--steps", default=8, type=int, help="of a run, at least 2")
    parser.add_argument("--repeats", default=5, type=int, help="runs of each")
    parser.add_argument("--options", default=OPTIONS[:2], nargs="+", choices=OPTIONS, help="each by itself")
    options = parser.parse_args(argv)
    try:
        check_options(EngineOptions(dependent_launch="dependent_launch" in options.options), options.device)
    except ValueError as error:
        parser.error(str(error))
    return options


def _with(name: str, model: HQTransformer) -> StepOptions:
    """One option."""
    if name != "tables":
        return StepOptions(**{name: True})
    start = time.perf_counter()
    tables = make_tables(model)
    _synchronise(model.norm.weight.device)
    print(f"tables: {tables.bytes / 1e6:.1f} MB, made in {time.perf_counter() - start:.2f} s")
    return StepOptions(tables)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Print what each option saves, and the tables' size."""
    options = _parse(argv)
    config = BENCHMARK_PRESETS[options.preset].transformer
    assert config is not None
    with options.device:
        torch.manual_seed(0)
        model = HQTransformer(config).to(DTYPES[options.dtype]).eval()
        inputs = _inputs(config, options.batch)
    steps = {NONE: FusedStep(model, options.batch)}
    steps |= {name: FusedStep(model, options.batch, _with(name, model)) for name in options.options}
    times = _measure(steps, inputs, options.steps, options.repeats)
    print(_line("first step", {name: [run[0] for run in runs] for name, runs in times.items()}))
    print(_line("a later step", {name: [t for run in runs for t in run[1:]] for name, runs in times.items()}))


if __name__ == "__main__":
    main()
