"""How long the GPU is idle between the kernels of a batch: drawing, decoding, and a stream of batches, from a profile.

``python -m benchmarks.studies.idle --preset S --batch 50 --kernels 20``. Idle is the share of the time from the first
kernel's start to the last one's end in which no kernel, copy or fill runs on any stream: of a chain of kernels that
wait for each other, at least the gaps between them. The target is below 15 % for a replay of 50 images. ``--kernels``
also lists those that take the most time. Each half is issued :data:`IN_A_ROW` times, as a stream does it: the host
issues a replay while the one before it runs, and what it takes to launch the very first is no idleness of the GPU's.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

import torch

from benchmarks.entrants.ours import open_model
from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.seeds import image_seeds
from hqtvae_fast.tune.whole import any_rows

IN_A_ROW = 3


Span = tuple[float, float, str]
"""From when to when, in microseconds, and the kernel's name."""


def idle_share(spans: Iterable[Span]) -> float:
    """Of spans in any order, which may overlap: the share of their whole extent that none covers."""
    ordered = sorted(spans)
    if not ordered:
        raise ValueError("expected kernels in the profile; got none")
    begin, reached, idle = ordered[0][0], ordered[0][0], 0.0
    for start, end, _ in ordered:
        idle += max(0.0, start - reached)
        reached = max(reached, end)
    return idle / (reached - begin) if reached > begin else 0.0


def kernel_lines(spans: Iterable[Span], most: int) -> list[str]:
    """The kernels that take the most time: their share of all kernels' time, how many, and microseconds of each."""
    times: dict[str, list[float]] = defaultdict(list)
    for start, end, name in spans:
        times[name].append(end - start)
    whole = sum(map(sum, times.values()))
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))
    return [
        f"{100 * sum(own) / whole:5.1f}% {len(own):6,} x {mean(own):8.1f} us  {name}" for name, own in ranked[:most]
    ]


def profiled(work: Callable[[], object]) -> list[Span]:
    """What ran on the GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    return [(e.time_range.start, e.time_range.end, e.name) for e in profile.events() or () if e.device_type == cuda]


def measure(pipe: HQTVAEPipeline, batch: int) -> dict[str, list[Span]]:
    """What runs while a batch is drawn, and while one is decoded, :data:`IN_A_ROW` times over, and in a stream of as
    many batches; after a run of each."""
    executor, device = pipe._executor, pipe.device
    rows = any_rows([model.config for model in executor.models], 0, batch, device)
    invalid = torch.zeros((), dtype=torch.bool, device=device)
    seeds = image_seeds(0, batch).to(device)
    how: dict[str, Any] = {"num_images": IN_A_ROW * batch, "batch_size": batch, "output_type": "pil", "progress": False}
    if executor.models[0].config.condition == "class":
        how["class_labels"] = 0

    def draw() -> tuple[torch.Tensor, ...]:
        return executor.draw(*rows._replace(seeds=seeds), invalid, lambda: None)

    with torch.inference_mode():
        codes = draw()
        works = {
            "drawing": lambda: [draw() for _ in range(IN_A_ROW)],
            "decoding": lambda: [executor.decode(codes, batch, as_bytes=True) for _ in range(IN_A_ROW)],
            "stream": lambda: list(pipe.stream(**how)),
        }
        for work in works.values():
            work()
        return {name: profiled(work) for name, work in works.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.studies.idle", description="Idle time of a GPU, from a profile."
    )
    parser.add_argument("--preset", default="S", choices=("S", "M", "L", "tiny"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 50])
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="list the N that take the most time")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("idle: expected an NVIDIA GPU, whose profile this reads; torch sees none")
    pipe = HQTVAEPipeline(open_model(options.preset, None), device="cuda")
    for batch in options.batch:
        for name, spans in measure(pipe, batch).items():
            print(f"batch {batch}, {name}: idle {100 * idle_share(spans):.1f}%")
            for line in kernel_lines(spans, options.kernels):
                print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
