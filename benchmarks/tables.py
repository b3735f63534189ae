"""What tables of codes and classes gain (:mod:`hqtvae_fast.engine.tables`): time of a step with and without them.

``python -m benchmarks.tables --preset S --device cpu --batch 1``. Both take turns, run by run; weights and codes are
random. A run draws nothing: it is the body and the head's passes of the first ``--steps`` steps.
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
from hqtvae_fast.engine.step import StepOptions
from hqtvae_fast.engine.tables import StepTables
from hqtvae_fast.model import HQTransformer

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
    both = ", ".join(f"{name} {median[name]:.2f} ms (min {min(values):.2f})" for name, values in times.items())
    return f"{what}: {both}: {100 * (1 - median['with'] / median['without']):.1f}% saved"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.tables", description="Steps with and without tables.")
    parser.add_argument("--preset", default="S", choices=BENCHMARK_PRESETS)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--batch", default=1, type=int)
    parser.add_argument("--steps", default=8, type=int, help="of a run, at least 2")
    parser.add_argument("--repeats", default=5, type=int, help="runs of each")
    return parser.parse_args(argv)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables' size and what they save."""
    options = _parse(argv)
    config = BENCHMARK_PRESETS[options.preset].transformer
    assert config is not None
    with options.device:
        torch.manual_seed(0)
        model = HQTransformer(config).to(DTYPES[options.dtype]).eval()
        inputs = _inputs(config, options.batch)
    tables: list[StepTables] = []
    seconds = _timed(options.device, lambda: tables.append(make_tables(model)))
    print(f"tables: {tables[0].bytes / 1e6:.1f} MB, made in {seconds:.2f} s")
    steps = {
        "without": FusedStep(model, options.batch),
        "with": FusedStep(model, options.batch, StepOptions(tables[0])),
    }
    times = _measure(steps, inputs, options.steps, options.repeats)
    print(_line("first step", {name: [run[0] for run in runs] for name, runs in times.items()}))
    print(_line("a later step", {name: [t for run in runs for t in run[1:]] for name, runs in times.items()}))


if __name__ == "__main__":
    main()
