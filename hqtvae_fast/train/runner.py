"""The training loop of both stages: updates, logs, checkpoints, and going on after a kill as if there had been none.

A stage is a :class:`Task`; this file knows nothing of what it trains. A run's directory holds ``checkpoints/`` (the
last few, each complete or absent), ``logs/`` (TensorBoard), ``pictures/`` and ``losses.jsonl``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from hqtvae_fast.train.data import Batch, BrokenCount, EpochSampler
from hqtvae_fast.train.progress import TrainingProgress

CHECKPOINTS, LOSSES, PICTURES = "checkpoints", "losses.jsonl", "pictures"
METRICS_LIMIT = 1e6  # a loss beyond it has exploded


class TrainingError(ValueError):
    """Training cannot go on; the message names the update, the batch and the last good checkpoint."""


@dataclass(frozen=True)
class LoopSettings:
    """How long to train, and how often to do what, in updates (0: never)."""

    steps: int
    log_every: int = 10
    save_every: int = 500
    picture_every: int = 500
    keep: int = 2
    """Checkpoints kept, the newest ones."""
    stop_after: int | None = None
    """End early, with a checkpoint, after this many updates of this process: to train in pieces."""
    stop_after_minutes: float | None = None
    """The same, after the first update that ends this long after the start."""
    validate_every: int = 500
    """Held-out figures; without held-out pictures there are none."""


class Task(Protocol):
    """What is trained."""

    def update(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        """One update from this rank's micro-batches: scalars, already means over all ranks."""

    def validate(self) -> dict[str, float]:
        """Scalars of held-out pictures, the same on all ranks, each of which calls it; empty if there are none."""

    def pictures(self, step: int) -> Image.Image | None:
        """Something to look at, made on the main process."""

    def save(self, directory: Path) -> None:
        """What training made, in this package's format; called on the main process when it ends."""


@dataclass
class Position:
    """Where a run stands; saved and restored with the models."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    fingerprint: str = ""
    broken: BrokenCount = field(default_factory=BrokenCount)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "fingerprint": self.fingerprint,
            "broken": self.broken.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.fingerprint and state["fingerprint"] != self.fingerprint:
            raise ValueError("data: expected the pictures that this run was started on; these are others")
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self.broken.count = state["broken"]


class Runner:
    """Runs a task over a loader's batches, from its last checkpoint on if the directory has one."""

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        loader: DataLoader[Any],
        sampler: EpochSampler,
        directory: Path,
        settings: LoopSettings,
        *,
        accumulate: int = 1,
        fingerprint: str = "",
    ) -> None:
        self.accelerator, self.task, self.loader, self.sampler = accelerator, task, loader, sampler
        self.directory, self.settings, self.accumulate = directory, settings, accumulate
        self.position = Position(fingerprint=fingerprint)
        accelerator.register_for_checkpointing(self.position)
        self.console = Console(stderr=True)

    def run(self) -> None:
        """Train to the end, or to ``stop_after``; raises :class:`TrainingError` on a loss that is no number."""
        self._resume()
        began = time.monotonic()
        end = self.settings.steps
        if self.settings.stop_after is not None:
            end = min(end, self.position.step + self.settings.stop_after)
        with TrainingProgress(
            self.settings.steps,
            self.position.step,
            self.sampler.batch_size,
            shown=self.accelerator.is_main_process,
            console=self.console,
        ) as progress:
            batches = self._batches()
            while self.position.step < end:
                batch = next(batches)
                metrics = self._update(batch)
                self._after(metrics, batch)
                progress.update(self.position.step, metrics, str(self.position.broken))
                if self._time_is_up(began):
                    break
        self._checkpoint()
        if self.position.step == self.settings.steps and self.accelerator.is_main_process:
            self.task.save(self.directory / "model")

    def _time_is_up(self, began: float) -> bool:
        """The slowest rank decides for all: none may leave the others waiting for its gradients."""
        if self.settings.stop_after_minutes is None:
            return False
        passed = torch.tensor(time.monotonic() - began, dtype=torch.float32, device=self.accelerator.device)
        return float(self.accelerator.gather(passed[None]).max()) >= 60 * self.settings.stop_after_minutes

    # ----------------------------------------------------------------------------------------------------- updates

    def _batches(self) -> Iterator[Batch]:
        """Batches from the saved position on, epoch after epoch."""
        while True:
            self.sampler.seek(self.position.epoch, self.position.batch)
            for batch in self.loader:
                self.position.batch += 1
                yield batch
            self.position.epoch, self.position.batch = self.position.epoch + 1, 0

    def _update(self, batch: Batch) -> dict[str, float]:
        moved = batch.to(self.accelerator.device, non_blocking=True)
        metrics = self.task.update(list(split(moved, self.accumulate)), self.position.step)
        values = {name: float(value) for name, value in metrics.items()}
        wrong = [name for name, value in values.items() if not math.isfinite(value) or abs(value) > METRICS_LIMIT]
        if wrong:
            keys = ", ".join(batch.keys[:8]) + (", ..." if len(batch) > 8 else "")
            raise TrainingError(
                f"update {self.position.step}: {wrong[0]} is {values[wrong[0]]:.4g}; its batch: {keys};"
                f" the last good checkpoint: {self.last_checkpoint() or 'none yet'}"
            )
        return values

    def _after(self, metrics: dict[str, float], batch: Batch) -> None:
        self.position.step += 1
        self.position.broken.add(self._gather_keys(batch.broken))
        step, settings = self.position.step, self.settings
        logged = dict(metrics) if _due(step, settings.log_every) else {}
        if _due(step, settings.validate_every):
            logged |= {f"val_{name}": value for name, value in self.task.validate().items()}
        if logged:
            self._log(logged)
        if _due(step, settings.picture_every) and self.accelerator.is_main_process:
            self._write_picture()
        if _due(step, settings.save_every) and step < settings.steps:
            self._checkpoint()

    def _gather_keys(self, keys: tuple[str, ...]) -> list[str]:
        from accelerate.utils import gather_object

        return list(keys) if self.accelerator.num_processes == 1 else list(gather_object(list(keys)))

    # -------------------------------------------------------------------------------------------- what a run leaves

    def _log(self, metrics: dict[str, float]) -> None:
        self.accelerator.log(metrics, step=self.position.step)
        if self.accelerator.is_main_process:
            with (self.directory / LOSSES).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.position.step, **metrics}) + "\n")

    def _write_picture(self) -> None:
        picture = self.task.pictures(self.position.step)
        if picture is not None:
            folder = self.directory / PICTURES
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{self.position.step:07d}.png")

    def _checkpoint(self) -> None:
        """Save everything into a folder that takes its name when it is whole; then drop the oldest."""
        final = self.directory / CHECKPOINTS / f"step-{self.position.step:07d}"
        partial = final.with_name(f".partial-{final.name}")
        if final.exists():
            return
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            os.replace(partial, final)
            for old in self._checkpoints()[: -self.settings.keep]:
                shutil.rmtree(old, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.directory / CHECKPOINTS).glob("step-*"))

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(iter(reversed(self._checkpoints())), None)

    def _resume(self) -> None:
        last = self.last_checkpoint()
        if last is not None:
            self.accelerator.load_state(str(last))
            self.accelerator.print(f"going on from {last}, update {self.position.step}")
        self._cut_log()

    def _cut_log(self) -> None:
        """Forget what was logged after the checkpoint, if there was one: those updates are made again."""
        file = self.directory / LOSSES
        if self.accelerator.is_main_process and file.exists():
            lines = [line for line in file.read_text().splitlines() if json.loads(line)["step"] <= self.position.step]
            file.write_text("".join(f"{line}\n" for line in lines))


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """A batch in micro-batches of equal size. ValueError if it cannot be cut so."""
    size, rest = divmod(len(batch), parts)
    if rest or size == 0:
        raise ValueError(f"accumulate: expected a divisor of the {len(batch)} pictures of a rank; got {parts}")
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        yield Batch(
            images=batch.images[rows],
            keys=batch.keys[rows],
            labels=None if batch.labels is None else batch.labels[rows],
            captions=None if batch.captions is None else batch.captions[rows],
            broken=(),
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def mean_over_ranks(accelerator: Accelerator, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scalars averaged over all processes, in one message."""
    names = list(metrics)
    values = torch.stack([metrics[name].detach().float() for name in names])
    reduced = accelerator.reduce(values, reduction="mean")
    return dict(zip(names, reduced.unbind(), strict=True))
