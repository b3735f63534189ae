"""The training loop of both stages: updates, logs, checkpoints, and going on after a kill as if there had been none.

A stage is a :class:`Task`; this file knows nothing of what it trains. A run's directory holds ``checkpoints/`` (the
last few), ``logs/`` (TensorBoard), ``pictures/`` and ``losses.jsonl``.
"""

from __future__ import annotations

import io
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader

from hqtvae_fast.checkpoint import CheckpointError
from hqtvae_fast.files import write_file
from hqtvae_fast.run_folder import CHECKPOINTS, LOGS, MODEL, PICTURES, damage
from hqtvae_fast.train.data import Batch, BrokenCount, PictureStream
from hqtvae_fast.train.progress import TrainingProgress
from hqtvae_fast.train.records import LOSSES, add_record, cut_records, read_records
from hqtvae_fast.train.run_checkpoints import RunCheckpoints
from hqtvae_fast.train.watch import Watch
from hqtvae_fast.train.words import HELD_OUT

METRICS_LIMIT = 1e6  # a loss beyond it has exploded
PROBLEM = 300  # characters of an error; torch's of a model of other sizes lists every weight


class TrainingError(ValueError):
    """Training cannot go on; the message names the update and the batch, or the file, and the last good checkpoint."""


class OtherDataError(ValueError):
    """A run goes on with other pictures than it was started on."""


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
    title: str = "training"
    """What is trained, to those who watch."""
    fresh: bool = True
    """Weights were drawn at random; see :class:`hqtvae_fast.train.watch.Watch`."""


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
    seen: int = 0
    """Pictures of the stream that the updates so far have used."""
    fingerprint: str = ""
    broken: BrokenCount = field(default_factory=BrokenCount)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seen": self.seen,
            "fingerprint": self.fingerprint,
            "broken": self.broken.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.fingerprint and state["fingerprint"] != self.fingerprint:
            raise OtherDataError("data: expected the pictures that this run was started on; these are others")
        self.step, self.seen, self.broken.count = state["step"], state["seen"], state["broken"]


class Runner:
    """Runs a task over a loader's batches, from its last checkpoint on if the directory has one."""

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        loader: DataLoader[Any],
        stream: PictureStream,
        directory: Path,
        settings: LoopSettings,
        *,
        accumulate: int = 1,
        fingerprint: str = "",
    ) -> None:
        self.accelerator, self.task, self.loader, self.stream = accelerator, task, loader, stream
        self.directory, self.settings, self.accumulate = directory, settings, accumulate
        self.checkpoints = RunCheckpoints(directory / CHECKPOINTS, settings.keep)
        self.position = Position(fingerprint=fingerprint)
        accelerator.register_for_checkpointing(self.position)
        self.console = Console(stderr=True)
        self.watch = Watch(fresh=settings.fresh)

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
            self.stream.batch_size,
            title=self.settings.title,
            shown=self.accelerator.is_main_process,
            console=self.console,
        ) as progress:
            batches = self._batches()
            while self.position.step < end:
                batch = next(batches)
                metrics = self._update(batch)
                held_out = self._after(metrics, batch)
                broken = str(self.position.broken) if self.position.broken.count else ""
                progress.update(self.position.step, {**metrics, **held_out}, broken)
                for message in self.watch.look(self.position.step, metrics):
                    self._warn(message, progress)
                if self._time_is_up(began):
                    break
        self._checkpoint()
        if self.position.step == self.settings.steps and self.accelerator.is_main_process:
            with self._writing(self.directory / MODEL):
                self.task.save(self.directory / MODEL)

    def close(self) -> None:
        """End the logs and the group of processes."""
        with self._writing(self.directory / LOGS):
            self.accelerator.end_training()

    def _time_is_up(self, began: float) -> bool:
        """The slowest rank decides for all: none may leave the others waiting for its gradients."""
        if self.settings.stop_after_minutes is None:
            return False
        passed = torch.tensor(time.monotonic() - began, dtype=torch.float32, device=self.accelerator.device)
        return float(self.accelerator.gather(passed[None]).max()) >= 60 * self.settings.stop_after_minutes

    # ----------------------------------------------------------------------------------------------------- updates

    def _batches(self) -> Iterator[Batch]:
        """Batches from the saved position on, without end."""
        self.stream.seek(self.position.seen)
        for batch in self.loader:
            self.position.seen += self.stream.batch_size
            yield batch

    def _update(self, batch: Batch) -> dict[str, float]:
        moved = batch.to(self.accelerator.device, non_blocking=True)
        metrics = self.task.update(list(split(moved, self.accumulate)), self.position.step)
        values = {name: float(value) for name, value in metrics.items()}
        wrong = [name for name, value in values.items() if not math.isfinite(value) or abs(value) > METRICS_LIMIT]
        if wrong:
            keys = ", ".join(batch.keys[:8]) + (", ..." if len(batch) > 8 else "")
            raise TrainingError(
                f"update {self.position.step}: {wrong[0]} is {values[wrong[0]]:.4g}; its batch: {keys};"
                f" the last good checkpoint: {self.checkpoints.newest() or 'none yet'}"
            )
        return values

    def _after(self, metrics: dict[str, float], batch: Batch) -> dict[str, float]:
        """What is due after an update; returns the figures of held-out pictures, if they were due."""
        self.position.step += 1
        self.position.broken.add(self._of_all(list(batch.broken)))
        step, settings = self.position.step, self.settings
        logged, held_out = dict(metrics) if _due(step, settings.log_every) else {}, dict[str, float]()
        if _due(step, settings.validate_every):
            held_out = {f"{HELD_OUT}{name}": value for name, value in self.task.validate().items()}
        if logged or held_out:
            self._log(logged | held_out)
        if _due(step, settings.picture_every) and self.accelerator.is_main_process:
            self._write_picture()
        if _due(step, settings.save_every) and step < settings.steps:
            self._checkpoint()
        return held_out

    def _of_all(self, own: list[str]) -> list[str]:
        """What each process has to say, to all of them."""
        from accelerate.utils import gather_object

        return own if self.accelerator.num_processes == 1 else list(gather_object(own))

    # -------------------------------------------------------------------------------------------- what a run leaves

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """What cannot be written, on a full disk say, is named, and so is what there is to go on from."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError, CheckpointError) as error:  # torch.save's is a RuntimeError
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise TrainingError(
                f"{path}: cannot be written ({reason}); update {self.position.step}; the same command goes on from the"
                f" last good checkpoint: {self.checkpoints.newest() or 'none yet'}"
            ) from error

    def _log(self, metrics: dict[str, float]) -> None:
        with self._writing(self.directory / LOGS):
            self.accelerator.log(metrics, step=self.position.step)
        if self.accelerator.is_main_process:
            with self._writing(self.directory / LOSSES):
                add_record(self.directory / LOSSES, {"step": self.position.step, **metrics})

    def _warn(self, message: str, progress: TrainingProgress) -> None:
        progress.warn(message)
        if self.accelerator.is_main_process:
            with self._writing(self.directory / LOSSES):
                add_record(self.directory / LOSSES, {"step": self.position.step, "warning": message})

    def _write_picture(self) -> None:
        picture = self.task.pictures(self.position.step)
        if picture is not None:
            step = self.position.step
            file, data = self.directory / PICTURES / f"{step:07d}.png", io.BytesIO()
            picture.save(data, format="PNG")
            with self._writing(file):
                write_file(file, data.getvalue())
            with self._writing(self.directory / LOGS):
                for tracker in self.accelerator.trackers:  # none where no logs were begun
                    tracker.log_images({PICTURES: np.asarray(picture)[None]}, step, dataformats="NHWC")

    def _checkpoint(self) -> None:
        """Save everything into a folder that takes its name when it is whole; then drop the oldest."""
        step, main = self.position.step, self.accelerator.is_main_process
        final, partial = self.checkpoints.path(step), self.checkpoints.partial(step)
        if final.exists():
            return
        if main:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with self._writing(final):
                self.accelerator.save_state(str(partial))
            self.accelerator.wait_for_everyone()
            if main:
                with self._writing(final):
                    self.checkpoints.finish(step)
        finally:
            if main:
                shutil.rmtree(partial, ignore_errors=True)

    # --------------------------------------------------------------------------------------------------- going on

    def _resume(self) -> None:
        """From the newest whole checkpoint; TrainingError if there are some and none of them is."""
        found, refused = None, dict[Path, str]()
        for checkpoint in self.checkpoints.newest_first():
            problem = self._load(checkpoint)
            if not problem:
                found = checkpoint
                break
            refused[checkpoint] = problem
        if found is None and refused:
            told = "; ".join(f"{path}: {problem}" for path, problem in refused.items())
            raise TrainingError(f"expected a checkpoint to go on from; got {told}")
        if found is not None:
            self.accelerator.print(f"going on from {found}, update {self.position.step}")
        if self.accelerator.is_main_process:
            self._tidy(refused)
        for record in read_records(self.directory / LOSSES)[0]:  # so that nothing is said twice
            if record["step"] <= self.position.step:
                self.watch.look(record["step"], record)

    def _load(self, checkpoint: Path) -> str:
        """What is wrong with a checkpoint, for one process or another; empty, on all of them, if it is loaded."""
        problem = damage(checkpoint)
        if not problem:
            try:
                self.accelerator.load_state(str(checkpoint))
            except OtherDataError:
                raise
            except Exception as error:
                problem = " ".join(str(error).split())[:PROBLEM] or type(error).__name__
        return next((told for told in self._of_all([problem]) if told), "")

    def _tidy(self, refused: dict[Path, str]) -> None:
        """Move damaged checkpoints out of the way of new ones, and forget what was logged after the one that was
        loaded: those updates are made again."""
        self.checkpoints.drop_partial()
        for checkpoint, problem in refused.items():
            aside = self.checkpoints.set_aside(checkpoint)
            self.console.print(
                f"left out: {checkpoint}, a damaged checkpoint ({problem}), now {aside.name}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
        file = self.directory / LOSSES
        if broken := cut_records(file, self.position.step):
            lines = "1 line that is no record" if broken == 1 else f"{broken} lines that are no records"
            self.console.print(f"left out: {lines} of {file}", soft_wrap=True, highlight=False, markup=False)


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
