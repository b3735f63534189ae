"""A script of the released repository: alone, through hqtvae_fast.compat, and the pipeline, in turns in one run.

The script is a process of its own, timed from outside: from its first batch of pictures on disk to its last, so that
neither loading nor what the first batch alone does (packing, capturing) is in the time. The pipeline draws and decodes
as many batches, one after the other, with its pictures on the host.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.entrants.ours import BENCHMARK_PRESETS
from benchmarks.entrants.released import import_released
from benchmarks.entrants.released_models import write_released
from benchmarks.measuring.environment import describe
from benchmarks.measuring.schema import Results, Row, write
from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.checkpoint_config import find_config

KNOWN = "sampling_hqmodel.py"
ALONE = "the script alone"
PICTURES = 50_000
"""That the script makes, over all classes."""
PATIENCE = 3600.0  # seconds for one run of the script
ROOT = Path(__file__).parents[2]
STDERR = Console(stderr=True, highlight=False)
Draw = Callable[[], float]


def time_script(
    script: str,
    released: Path | None,
    model: str,
    directory: Path | None,
    device: torch.device,
    batch: int,
    batches: int,
    repeats: int,
    dtype: str,
    json: Path | None = None,
) -> dict[str, list[float]]:
    """Seconds a batch of each run, by entrant; also printed, and written to ``json``. ``batches``: timed ones a run.
    ValueError where something cannot be run."""
    if script != KNOWN:
        raise ValueError(f"--script: expected {KNOWN}; got {script!r}")
    if released is None or not (released / script).is_file():
        raise ValueError(f"--script: expected a checkout with {script} as --released; got {released}")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = directory
        if checkpoint is None:
            checkpoint = Path(folder) / "model"
            write_released(import_released(released), BENCHMARK_PRESETS[model], checkpoint)
        runs = _entrants(released / script, checkpoint, device, batch, batches, dtype, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(repeats):
            order = list(runs) if turn % 2 == 0 else list(reversed(runs))
            for name in order:
                seconds[name].append(runs[name]())
                STDERR.print(f"{name}: {seconds[name][-1]:.3f} s a batch", style="dim")
    named = f"{model if directory is None else directory}, batch {batch}, {dtype} on {device}"
    _show(seconds, named)
    if json is not None:
        rows = [
            Row(f"{named}: {script}", name, (tuple(runs),), ours=name != ALONE, work={"images": batch})
            for name, runs in seconds.items()
        ]
        write(Results("script", describe(device), tuple(rows)), json)
    return seconds


def _entrants(
    script: Path, checkpoint: Path, device: torch.device, batch: int, batches: int, dtype: str, folder: Path
) -> dict[str, Draw]:
    sides = find_config(checkpoint)[0].vae.level_sides
    given = ["-m", str(checkpoint.absolute()), "--batch-size", str(batch), "--num-classes", str(PICTURES // batch)]
    given += ["--top-resolution", str(sides[0]), "--bot-resolution", str(sides[-1]), "--code-level", str(len(sides))]
    pipe = HQTVAEPipeline.from_pretrained(checkpoint, device=device, dtype=None if dtype == "auto" else dtype)
    size = max(pipe.config.vae.codebook_sizes)
    given += ["--top-k", str(min(2048, size))]

    def piped() -> float:
        _draw(pipe, 1, batch, min(2048, size))
        start = time.perf_counter()
        _draw(pipe, batches, batch, min(2048, size))
        return (time.perf_counter() - start) / batches

    def scripted(*options: str) -> Draw:
        return lambda: _run(script, [*options, str(script.absolute()), *given], batches, folder)

    return {
        ALONE: scripted("--as-it-is"),
        "through compat": scripted(*([] if dtype == "auto" else ["--dtype", dtype])),
        "the pipeline": piped,
    }


def _draw(pipe: HQTVAEPipeline, batches: int, batch: int, top_k: int) -> None:
    for label in range(batches):
        pipe(label, num_images=batch, batch_size=batch, top_k=top_k, seed=None, output_type="np", progress=False)


def _run(script: Path, arguments: Sequence[str], batches: int, folder: Path) -> float:
    """Seconds a batch, from the first one's pictures to those of as many more as there are timed batches."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory(dir=folder) as out, (folder / "said").open("w+b") as said:
        command = [sys.executable, "-m", "hqtvae_fast.compat", *arguments, "-r", out]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
        try:
            _wait(process, Path(out), batches + 1)
        finally:
            process.terminate()
            process.wait()
        times = sorted(file.stat().st_mtime for file in Path(out).glob("targets_*.npz"))[: batches + 1]
        if len(times) <= batches:
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or ["nothing was said"])[-1]
            raise ValueError(f"--script: expected {batches + 1} batches of pictures; got {len(times)}: {last}")
    return (times[-1] - times[0]) / batches


def _wait(process: subprocess.Popen[bytes], out: Path, files: int) -> None:
    start = time.monotonic()
    while process.poll() is None and time.monotonic() - start < PATIENCE:
        if len(list(out.glob("targets_*.npz"))) >= files:
            return
        time.sleep(0.02)  # the files' own times are what is measured


def _show(seconds: dict[str, list[float]], title: str) -> None:
    table = Table("", "s a batch", "runs", "times as fast as the script alone", title=title)
    alone = median(next(iter(seconds.values())))
    for name, own in seconds.items():
        runs = " ".join(f"{each:.3f}" for each in own)
        table.add_row(name, f"{median(own):.3f}", runs, f"{alone / median(own):.2f}")
    Console().print(table)
