"""Micro-batches of as many pictures as the memory at hand holds."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch

from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.train.config import RunConfig, Stage1Run, Stage2Run
from hqtvae_fast.train.sizing.estimate import Extras, fits, training_bytes
from hqtvae_fast.train.start import Started

Begun = TypeVar("Begun", bound=Started[Any])
MEMORY = Path("/proc/meminfo")
UNKNOWN = float("inf")


def in_memory(begun: Begun, config: HQTVAEConfig, free: float | None = None) -> Begun:
    """The run in the fewest micro-batches that ``free`` bytes hold, by default those of its device, if it begins and
    nobody has named a number. Where not even single pictures of stage 2 fit, activations are computed twice; a warning
    where that does not help either."""
    run, pictures = begun.run, share(begun)
    if begun.goes_on or "accumulate" in run.given:
        return begun
    free = free_bytes(begun.accelerator.device) if free is None else free
    parts = [count for count in range(1, pictures + 1) if pictures % count == 0]
    asked = (config, run.stage)
    runs = [run]
    if isinstance(run, Stage2Run) and "activation_checkpointing" not in run.given:
        runs.append(dataclasses.replace(run, activation_checkpointing=True))
    for run in runs:
        found = next((n for n in parts if fits(*asked, pictures // n, free, run.precision, extras(run))), None)
        if found is not None:
            break
    else:
        found, needed = pictures, training_bytes(*asked, 1, run.precision, extras(run)) / 2**30
        warnings.warn(
            f"memory: a picture at a time needs about {needed:.1f} GiB (estimated), and {free / 2**30:.1f} are free:"
            " a smaller --size or --resolution needs less",
            stacklevel=2,
        )
    return dataclasses.replace(begun, run=dataclasses.replace(run, accumulate=found))


def free_bytes(device: torch.device) -> float:
    """Memory that a program may still take; infinite where nobody says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in MEMORY.read_text(encoding="ascii").splitlines())
        return 1024.0 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return UNKNOWN


def share(begun: Started[Any]) -> int:
    """Pictures of an update on this device."""
    return max(1, begun.run.batch_size // begun.accelerator.num_processes)


def extras(run: RunConfig) -> Extras:
    """What a run's updates have besides the model's own pass."""
    if isinstance(run, Stage1Run):
        channels = run.discriminator_channels if run.adversarial else 0
        return Extras(discriminator_channels=channels, perceptual=bool(run.perceptual_weights))
    assert isinstance(run, Stage2Run)
    return Extras(encodes=run.code_cache is None, checkpointing=run.activation_checkpointing)
