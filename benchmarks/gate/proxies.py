"""What can be counted on any machine, without a GPU: the proxy gate for pull requests.

python -m benchmarks.gate.proxies --json proxies.json

Launches a step, graph breaks, bytes that operations touch, FLOPs, peak memory of torch's allocator, the specs' and the
models' least work, registers, spills and shared memory of every compiled kernel, and ours over a fixed baseline of
plain torch, in turns, in CPU time. A count is a loss beyond its tolerance; the quotients are judged by their ranks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.entrants.ours import open_model
from benchmarks.gate import baseline, counters
from benchmarks.gate.worker import CLOCKS, generate_parts, timed
from benchmarks.measuring.environment import describe
from benchmarks.measuring.schema import Results, Row, read, write
from hqtvae_fast.config import PRESETS
from hqtvae_fast.model.cost import image_cost
from hqtvae_fast.ops.spec import all_specs

CPU = torch.device("cpu")
PRESET, BATCH = "tiny", 2
# Bytes and memory may move by rounding to alignments; registers by a unit of eight in a hundred.
EXACT, ALIGNMENT, REGISTERS = 0.0, 0.01, 0.08
TURNS = 8


def counted_rows() -> Iterator[Row]:
    """Of the sampler as it runs on a CPU."""
    model = open_model(PRESET, None)
    assert model.transformer is not None
    steps = model.transformer.config.num_steps
    for name, run in generate_parts(CPU, PRESET, BATCH).items():
        counts = counters.count(run)
        per = steps if name.endswith("draw") else 1
        yield _count(f"{name}: launches a {'step' if per > 1 else 'batch'}", counts.operations / per, "launches")
        yield _count(f"{name}: bytes touched", counts.bytes, "bytes", ALIGNMENT)
        yield _count(f"{name}: FLOPs in torch's operations", counts.flops, "flops")
        yield _count(f"{name}: peak memory", counters.peak_bytes(run), "bytes", ALIGNMENT)
    side = model.transformer.config.side
    codes = (torch.zeros(BATCH, side, side, dtype=torch.long), torch.zeros(BATCH, 2 * side, 2 * side, dtype=torch.long))
    labels = torch.zeros(BATCH, dtype=torch.long)
    forward = {
        "transformer": lambda: model.transformer(codes, labels),
        "decode": lambda: model.vae.decode(codes),
    }
    for name, run in forward.items():
        with torch.no_grad():
            yield _count(f"{PRESET}, {name}: graph breaks", counters.graph_breaks(run), "breaks")


def least_work_rows() -> Iterator[Row]:
    """What the specs and the cost model say of the least work: a change there moves every floor."""
    for spec in all_specs().values():
        for case in spec.cases:
            cost = spec.cost(case)
            yield _count(f"{spec.op}, {case.name}: least FLOPs", cost.flops, "flops")
            yield _count(f"{spec.op}, {case.name}: least bytes", cost.bytes, "bytes")
    for name, config in PRESETS.items():
        cost = image_cost(config, fold_upsampling=True)
        yield _count(f"{name}: FLOPs of drawing an image", cost.draw, "flops")
        yield _count(f"{name}: FLOPs of decoding an image, upsampling folded", cost.decode, "flops")
        yield _count(f"{name}: values of weights read a batch", cost.weights_read, "values")


def kernel_rows(notes: list[str]) -> Iterator[Row]:
    """Every variant that the specs name, compiled for sm_80 and sm_90, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "aot.json")
        command = [sys.executable, "-m", "hqtvae_fast.ops.aot", "--json", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if not file.exists():
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            notes.append(f"no kernels were compiled ahead of time: {last}")
            return
        found = json.loads(file.read_text(encoding="utf-8"))
    for kernel in found:
        resources = kernel.get("resources")
        where = f"{kernel['arch']} {kernel['variant']}"
        if resources is None:
            notes.append(f"{where}: {'; '.join(kernel['problems'])}")
            continue
        yield _count(f"{where}: registers", resources["registers"], "registers", REGISTERS)
        yield _count(f"{where}: spills", resources["spills"], "bytes")
        yield _count(f"{where}: shared memory", resources["shared"], "bytes")


def ratio_rows() -> Iterator[Row]:
    """CPU time of ours over the baseline's, taken in turn."""
    fixed = baseline.Baseline()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, run in generate_parts(CPU, PRESET, BATCH).items():
            other = fixed.draw if name.endswith("draw") else fixed.decode
            yield Row(
                f"{name} / {baseline.NAME}",
                "ours",
                (tuple(_quotients(run, other)),),
                unit="ratio",
                work={"turns": TURNS},
            )
    finally:
        torch.set_num_threads(threads)


def _quotients(run: Any, other: Any) -> Iterator[float]:
    clock, calls = CLOCKS["cpu"], 4  # of the baseline, which is the shorter one
    for each in (run, other):
        each()
    for turn in range(TURNS):
        order = ((run, 1), (other, calls))[:: -1 if turn % 2 else 1]
        seconds = {call: timed(call, count, 0.0, clock) / count for call, count in order}
        yield seconds[run] / seconds[other]


def _count(name: str, value: float, unit: str, tolerance: float = EXACT) -> Row:
    return Row(name, "ours", ((float(value),),), unit=unit, tolerance=tolerance)


def in_folder(folder: Path, out: Path, kernels: bool = True, processes: int = 6) -> Results:
    """The proxies of the package that lies in ``folder`` (:mod:`benchmarks.gate.revisions`): counts once, quotients in
    so many processes."""
    parts = []
    for index in range(processes):
        only = ["--kernels" if kernels else "--no-kernels"] if index == 0 else ["--only-ratios"]
        command = [sys.executable, "-m", "benchmarks.gate.proxies", *only, "--json", str(out)]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"the proxies of {folder} failed: {last}")
        parts.append(read(out))
    first = parts[0]
    ratios = {row.key: row for row in first.rows if row.unit == "ratio"}
    samples = {key: tuple(r.samples[0] for part in parts for r in part.rows if r.key == key) for key in ratios}
    rows = [
        Row(r.name, r.entrant, samples[r.key], unit=r.unit, work=r.work) if r.key in samples else r for r in first.rows
    ]
    return Results(first.benchmark, first.environment, tuple(rows), first.details)


def measure(only_ratios: bool = False, kernels: bool = True) -> Results:
    notes: list[str] = []
    rows = list(ratio_rows())
    if not only_ratios:
        rows += [*counted_rows(), *least_work_rows()]
        if kernels:
            rows += kernel_rows(notes)
        else:
            notes.append("no kernels were compiled ahead of time: --no-kernels")
    return Results("proxies", describe(CPU, "gate.proxies"), tuple(rows), {"notes": notes})


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Write everything counted to this file.")],
    only_ratios: Annotated[bool, typer.Option("--only-ratios", help="Only ours over the baseline.")] = False,
    kernels: Annotated[bool, typer.Option(help="Compile the GPU kernels: minutes.")] = True,
) -> None:
    """Count what can be counted without a GPU."""
    results = measure(only_ratios, kernels)
    write(results, json_file)
    for note in results.details["notes"]:
        typer.echo(note, err=True)
    typer.echo(f"{len(results.rows)} rows in {json_file}")


if __name__ == "__main__":
    typer.run(main)
