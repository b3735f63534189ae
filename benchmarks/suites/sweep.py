"""One model end to end, batch by batch: who takes part, the warm-up, and the runs in turn."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console

from benchmarks.entrants.baselines import KINDS, Plain
from benchmarks.entrants.ours import BENCHMARK_PRESETS, Ours, open_model, same_for_all
from benchmarks.entrants.released import Released, check_supported, import_released
from benchmarks.measuring.environment import PeakMemory
from benchmarks.measuring.timing import Sampler, Timing, batch_sizes, time_in_turns, time_run, time_whole
from benchmarks.suites.outcomes import Entrant, Outcome, Roof, Workload
from hqtvae_fast.checkpoint import Checkpoint
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.engine import SamplingParams
from hqtvae_fast.engine.options import check_precision, default_precision, read_precision
from hqtvae_fast.hardware import Device
from hqtvae_fast.model.cost import image_cost

STDERR = Console(stderr=True, highlight=False)
BATCHES_ON_GPU = 8  # a run's, so that there is something to overlap and enough to be timed
Maker = tuple[str, Callable[[], Sampler]]


@dataclass(frozen=True)
class Setting:
    """What is asked of every model and batch. ``images``: in all, None: one batch on a CPU and
    :data:`BATCHES_ON_GPU` on a GPU; ``sampling``: temperature, top-k, top-p; ``repeats``: of ours and the plain
    baselines, and of the released implementation; ``baselines``: of
    :data:`benchmarks.entrants.baselines.KINDS`; ``options``: the pipeline's, of ours."""

    device: torch.device
    images: int | None
    dtype: str
    sampling: tuple[float, int | None, float | None]
    repeats: tuple[int, int]
    baselines: tuple[str, ...] = ()
    released: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def sizes(self, batch: int) -> list[int]:
        """Of a run's batches."""
        return batch_sizes(self.images or batch * (BATCHES_ON_GPU if self.device.type == "cuda" else 1), batch)

    def params(self, config: HQTVAEConfig) -> SamplingParams:
        return same_for_all(config.vae, *self.sampling)


def check(setting: Setting, model: str, directory: Path | None, batches: Sequence[int]) -> None:
    """ValueError where something cannot be run at all, before minutes are spent on what can."""
    if directory is None and model not in BENCHMARK_PRESETS:
        open_model(model, None)  # says which there are
    config = BENCHMARK_PRESETS[model] if directory is None else open_model(model, directory).config
    setting.params(config)
    precision = default_precision(setting.device) if setting.dtype == "auto" else read_precision(setting.dtype)
    check_precision(precision, setting.options.get("quantization"), setting.device)
    if setting.released is not None:
        import_released(setting.released)
        for batch in batches:
            if batch > 1:  # its sampler fails on single images: that batch goes without it, and a note says so
                check_supported(config, setting.sizes(batch))


def measure(
    setting: Setting, models: Sequence[str], directory: Path | None, batches: Sequence[int], peaks: Device
) -> Iterator[Outcome]:
    """Each model with each batch size, with samplers of its own."""
    released = None if setting.released is None else import_released(setting.released)
    on_gpu, first = setting.device.type == "cuda", True
    for model in models:
        source = _Source(model, directory, keep=on_gpu)
        for batch in batches:
            yield _one_batch(setting, source, batch, released, peaks, tell_memory=on_gpu or first)
            first = False
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()


class _Source:
    """Checkpoints with the same weights, each the taker's own. ``keep``: one on the host, to be copied from, for
    random weights of L take longer to make than a GPU needs for the whole benchmark."""

    def __init__(self, model: str, directory: Path | None, *, keep: bool) -> None:
        self.model, self._directory = model, directory
        self._kept = open_model(model, directory) if keep else None

    def take(self) -> Checkpoint:
        return open_model(self.model, self._directory) if self._kept is None else copy.deepcopy(self._kept)


def _one_batch(
    setting: Setting,
    source: _Source,
    batch: int,
    released: dict[str, ModuleType] | None,
    peaks: Device,
    *,
    tell_memory: bool,
) -> Outcome:
    """``tell_memory``: of ours; a CPU's process can tell its peak once."""
    sizes, notes = setting.sizes(batch), list[str]()
    ours, memory, config = _make_ours(setting, source, sizes)
    makers = _makers(setting, source, config, sizes, released, ours)
    samplers, memories = _prepare(makers, sizes, setting.device, notes)
    turns = [setting.repeats[isinstance(sampler, Released)] for sampler in (ours, *samplers)]
    timings = _time([ours, *samplers], sizes, turns)
    workload = Workload(source.model, sum(sizes), batch, ours.steps * len(sizes))
    memories.insert(0, memory if tell_memory else None)
    entrants = [Entrant.of(*row) for row in zip((ours, *samplers), memories, timings, strict=True)]
    whole = _time_whole(ours, sizes, setting.repeats[0]) if len(sizes) > 1 else {}
    return Outcome(workload, Roof.of(image_cost(config), sizes, peaks), entrants, whole, notes)


# ------------------------------------------------------------------------------------------------------ who takes part


def _make_ours(setting: Setting, source: _Source, sizes: Sequence[int]) -> tuple[Ours, int, HQTVAEConfig]:
    """Ours, warm, with its peak memory: the first that a process makes, since a CPU can tell no other apart."""
    meter = PeakMemory(setting.device)
    checkpoint = source.take()
    params = setting.params(checkpoint.config)
    ours = Ours(checkpoint, setting.device, setting.dtype, params, **setting.options)
    _warm_up(ours, sizes)
    return ours, meter.read(), checkpoint.config


def _makers(
    setting: Setting,
    source: _Source,
    config: HQTVAEConfig,
    sizes: list[int],
    released: dict[str, ModuleType] | None,
    ours: Ours,
) -> Iterator[Maker]:
    """The baselines, each made when it is its turn."""
    params = setting.params(config)
    for kind in setting.baselines:
        yield KINDS[kind], lambda kind=kind: Plain(kind, source.take(), setting.device, ours.dtype, params)
    if released is not None:
        yield (
            Released.name,
            lambda: Released(released, config.vae, check_supported(config, sizes), setting.device, params),
        )


def _prepare(
    makers: Iterator[Maker], sizes: Sequence[int], device: torch.device, notes: list[str]
) -> tuple[list[Sampler], list[int | None]]:
    """Make each sampler and warm it up before the next is made; with each one's peak memory, on a GPU. A baseline that
    fails costs its own column only."""
    samplers: list[Sampler] = []
    memory: list[int | None] = []
    for name, make in makers:
        try:
            meter = PeakMemory(device)
            sampler = make()
            _warm_up(sampler, sizes)
        except Exception as error:  # out of memory, a compiler's failure, a model that it does not know
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            notes.append(f"left out: batch {sizes[0]}: {name}: {first}")
            continue
        samplers.append(sampler)
        memory.append(meter.read() if device.type == "cuda" else None)
    return samplers, memory


def _warm_up(sampler: Sampler, sizes: Sequence[int]) -> None:
    """A batch of each size, as often as the sampler needs until nothing is compiled or captured any more."""
    for _ in range(sampler.warm_ups):
        _say(sampler, "warm-up", time_run(sampler, list(dict.fromkeys(sizes))))


# ------------------------------------------------------------------------------------------------------------ the runs


def _time(samplers: Sequence[Sampler], sizes: list[int], turns: Sequence[int]) -> list[list[Timing]]:
    def run(index: int) -> Timing:
        timing = time_run(samplers[index], sizes)
        _say(samplers[index], "timed", timing)
        return timing

    return time_in_turns(run, turns)


def _time_whole(ours: Ours, sizes: list[int], repeats: int) -> dict[str, list[Timing]]:
    """Ours with its pictures on the host, in turns: batch by batch, and as a stream."""
    ways = {"batch by batch": ours.one_by_one, "stream": ours.stream}
    for run in ways.values():
        run(list(dict.fromkeys(sizes)))
    runs = list(ways.values())
    timings = time_in_turns(lambda index: time_whole(lambda: runs[index](sizes), ours.device), [repeats] * len(runs))
    return dict(zip(ways, timings, strict=True))


def _say(sampler: Sampler, what: str, timing: Timing) -> None:
    STDERR.print(f"{sampler.name}, {what}: AR {timing.ar:.3f} s, decode {timing.decode:.3f} s", style="dim")
