"""How long the GPU is idle between the kernels of a batch: drawing, decoding, and a stream of batches, from a profile.

``python -m benchmarks.studies.idle --preset S --batch 50``. Idle is the share of the time from the first kernel's start
to the last one's end in which no kernel, copy or fill runs on any stream. The design's target is below 2 % for a
replay. Each half is issued :data:`IN_A_ROW` times, as a stream does it: the host issues a replay while the one before
it runs, and what it takes to launch the very first is no idleness of the GPU's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from benchmarks.entrants.ours import open_model
from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine import image_seeds
from hqtvae_fast.tune.whole import any_rows

IN_A_ROW = 3


def idle_share(spans: Iterable[tuple[float, float]]) -> float:
    """Of (start, end) in any order, which may overlap: the share of their whole extent that none covers."""
    ordered = sorted(spans)
    if not ordered:
        raise ValueError("expected kernels in the profile; got none")
    begin, reached, idle = ordered[0][0], ordered[0][0], 0.0
    for start, end in ordered:
        idle += max(0.0, start - reached)
        reached = max(reached, end)
    return idle / (reached - begin) if reached > begin else 0.0


def profiled(work: Callable[[], object]) -> list[tuple[float, float]]:
    """What ran on the GPU, in microseconds."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    return [(e.time_range.start, e.time_range.end) for e in profile.events() or () if e.device_type == cuda]


def measure(pipe: HQTVAEPipeline, batch: int) -> dict[str, float]:
    """Idle share of a batch drawn, and of one decoded, :data:`IN_A_ROW` times over, and of as many batches of a stream;
    after a run of each."""
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
        return {name: idle_share(profiled(work)) for name, work in works.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.studies.idle", description="Idle time of a GPU, from a profile."
    )
    parser.add_argument("--preset", default="S", choices=("S", "M", "L", "tiny"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 50])
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("idle: expected an NVIDIA GPU, whose profile this reads; torch sees none")
    pipe = HQTVAEPipeline(open_model(options.preset, None), device="cuda")
    for batch in options.batch:
        shares = measure(pipe, batch)
        print(f"batch {batch}: idle " + ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items()))


if __name__ == "__main__":
    main()
