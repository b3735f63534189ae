"""The training loop of both stages: updates, logs, checkpoints, and going on after a kill as if there had been none.

A stage is a :class:`Task`; this file knows nothing of what it trains. A run's directory holds ``checkpoints/`` (the
last few), ``logs/`` (TensorBoard), ``pictures/`` and ``losses.jsonl``.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from hqtvae_fast.files import write_file
from hqtvae_fast.run_folder import LOGS, MODEL, PICTURES, RELOAD, REPORT
from hqtvae_fast.train.data import Batch, PictureStream
from hqtvae_fast.train.loop.cores import Cores
from hqtvae_fast.train.loop.position import Position
from hqtvae_fast.train.loop.progress import TrainingProgress
from hqtvae_fast.train.loop.records import LOSSES, Pace, add_record, cut_records, read_records
from hqtvae_fast.train.loop.run_checkpoints import DAMAGED
from hqtvae_fast.train.loop.run_state import RunState, TrainingError
from hqtvae_fast.train.loop.stopping import Signals, Stopped
from hqtvae_fast.train.loop.watch import Watch
from hqtvae_fast.train.words import HELD_OUT

METRICS_LIMIT = 1e6  # a loss beyond it has exploded


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
    restarts: bool = False
    """Weights were drawn at random, unused codes start anew: see :class:`hqtvae_fast.train.loop.watch.Watch`."""


class Task(Protocol):
    """What is trained."""

    @property
    def schedule(self) -> LRScheduler:
        """Of the learning rate that logs tell."""

    def update(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        """One update from this rank's micro-batches: scalars, already means over all ranks."""

    def validate(self) -> dict[str, float]:
        """Scalars of held-out pictures, the same on all ranks, each of which calls it; empty if there are none."""

    def pictures(self, step: int) -> Image.Image | None:
        """Something to look at, made on the main process."""

    def save(self, directory: Path) -> None:
        """What training made so far, in this package's format; called on the main process."""

    def load(self, directory: Path) -> None:
        """What :meth:`save` wrote, value by value; OtherRunError where that is on another stage 1. What is trained
        beside it, a discriminator say, is registered with accelerate."""


@dataclass(frozen=True)
class Word:
    """What a process has to say after an update: pictures that it could not read, the signal that it was sent, the
    seconds of this piece of the run."""

    broken: tuple[str, ...]
    signal: int | None
    seconds: float


class Runner:
    """Runs a task over a loader's batches, from its last checkpoint on if the directory has one.

    ``again``: the command that goes on with the run, to be shown when it ends early. ``report``: called on the main
    process when there is a new picture, and at the end.
    """

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
        again: str = "",
        report: Callable[[], Any] = lambda: None,
    ) -> None:
        """``again``: the command that goes on with this run. ``report``: called by the main process when there is more
        to be seen."""
        self.accelerator, self.task, self.loader, self.stream = accelerator, task, loader, stream
        self.directory, self.settings, self.accumulate = directory, settings, accumulate
        self.again = again
        self.position = Position(fingerprint=fingerprint)
        self.state = RunState(accelerator, task, directory, settings.keep, self.position)
        self.pace, self.cores = Pace(), Cores(accelerator.device)
        self.report, self.console = report, Console(stderr=True)
        self._reported, self._report_due = -math.inf, False
        self.watch = Watch(fresh=settings.fresh, restarts=settings.restarts)

    def resume(self) -> None:
        """Go to the newest whole checkpoint, if there is one, and forget what was logged after it: those updates are
        made again."""
        refused = self.state.resume()
        if not self.accelerator.is_main_process:
            return
        for aside, problem in refused.items():
            was = aside.with_name(aside.name.removeprefix(DAMAGED))
            self._say(f"left out: {was}, a damaged checkpoint ({problem}), now {aside.name}")
        file = self.directory / LOSSES
        if broken := cut_records(file, self.position.step):
            lines = "1 line that is no record" if broken == 1 else f"{broken} lines that are no records"
            self._say(f"left out: {lines} of {file}")
        for record in read_records(file)[0]:  # so that nothing is said twice
            self.watch.look(record["step"], record)

    def run(self) -> bool:
        """Train to the end, and return True, or to ``stop_after``. Stopped, when all is saved, after a signal;
        TrainingError on a loss that is no number."""
        end = self.settings.steps
        if self.settings.stop_after is not None:
            end = min(end, self.position.step + self.settings.stop_after)
        main = self.accelerator.is_main_process
        with Signals(shown=main) as signals:
            with TrainingProgress(
                self.settings.steps,
                self.position.step,
                self.stream.batch_size,
                title=self.settings.title,
                shown=main,
                console=self.console,
            ) as progress:
                self._train(end, signals, progress)
            saved = self._save()
            number = next((asked for asked in self.state.of_all([signals.asked]) if asked is not None), None)
        if main and (number is not None or not self._finished):
            done = f"stopped after update {self.position.step:,} of {self.settings.steps:,}, saved as {saved}"
            self._say(f"{done}; to go on: {self.again}" if self.again else f"{done}; the same command goes on")
        if number is not None:
            raise Stopped(number)
        return self._finished

    def close(self) -> None:
        """End the logs. The group of processes stays: the next stage is theirs too."""
        with self.state.writing(self.directory / LOGS):
            for tracker in self.accelerator.trackers:
                tracker.finish()

    @property
    def _finished(self) -> bool:
        return self.position.step >= self.settings.steps

    def _ends_with(self, every: int) -> bool:
        """What is done at intervals is done at the end of the run too: it tells what became of it."""
        return every > 0 and self._finished

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    # ----------------------------------------------------------------------------------------------------- updates

    def _train(self, end: int, signals: Signals, progress: TrainingProgress) -> None:
        """Updates until ``end``, until time is up or until a signal came: as many on all ranks."""
        before, minutes = self.position.seconds, self.settings.stop_after_minutes
        self.pace.begin(before, self.position.seen)
        began, batches = time.monotonic(), self._batches()
        while self.position.step < end:
            batch = next(batches)
            rate = float(self.task.schedule.get_last_lr()[0])
            metrics = self._update(batch)
            words = self.state.of_all([Word(batch.broken, signals.asked, time.monotonic() - began)])
            self.position.step += 1
            self.position.seconds = before + max(word.seconds for word in words)
            self.position.broken.add([key for word in words for key in word.broken])
            held_out = self._after(metrics, rate)
            broken = str(self.position.broken) if self.position.broken.count else ""
            progress.update(self.position.step, {**metrics, **held_out}, broken)
            for message in self.watch.look(self.position.step, metrics):
                self._warn(message, progress)
            # One decides for all: none may leave the others waiting for its gradients.
            if any(word.signal is not None for word in words):
                break
            if minutes is not None and self.position.seconds - before >= 60 * minutes:
                break

    def _batches(self) -> Iterator[Batch]:
        """Batches from the saved position on, without end."""
        self.stream.seek(self.position.seen)
        for batch in self.loader:
            self.position.seen += self.stream.batch_size
            yield batch

    def _update(self, batch: Batch) -> dict[str, float]:
        moved = batch.to(self.accelerator.device, non_blocking=True)
        with self.cores.update():
            metrics = self.task.update(list(split(moved, self.accumulate)), self.position.step)
            values = {name: float(value) for name, value in metrics.items()}
        wrong = [name for name, value in values.items() if not math.isfinite(value) or abs(value) > METRICS_LIMIT]
        if wrong:
            keys = ", ".join(batch.keys[:8]) + (", ..." if len(batch) > 8 else "")
            raise TrainingError(
                f"update {self.position.step}: {wrong[0]} is {values[wrong[0]]:.4g}; its batch: {keys};"
                f" the last good checkpoint: {self.state.checkpoints.newest() or 'none yet'}"
            )
        return values

    def _after(self, metrics: dict[str, float], rate: float) -> dict[str, float]:
        """What is due after an update; returns the figures of held-out pictures, if they were due."""
        step, settings = self.position.step, self.settings
        logged, held_out = dict(metrics) if _due(step, settings.log_every) else {}, dict[str, float]()
        if _due(step, settings.validate_every) or self._ends_with(settings.validate_every):
            held_out = {f"{HELD_OUT}{name}": value for name, value in self.task.validate().items()}
        if logged or held_out:
            epoch = self.stream.epochs(self.position.seen)
            self._log({"epoch": epoch, "learning_rate": rate, **logged, **held_out})
        pictured = _due(step, settings.picture_every) or self._ends_with(settings.picture_every)
        if pictured and self.accelerator.is_main_process:
            self._write_picture()
        if _due(step, settings.save_every) and step < settings.steps:
            self.state.save()
        return held_out

    # -------------------------------------------------------------------------------------------- what a run leaves

    def _save(self) -> Path:
        """A checkpoint, and at the end of the run its model; returns the last that was written."""
        saved = self.state.save()
        if self._finished:
            saved = self.directory / MODEL
            if self.accelerator.is_main_process:
                with self.state.writing(saved):
                    self.task.save(saved)
                self._report_due = True
        if self._report_due:
            self._report()
        return saved

    def _log(self, metrics: dict[str, float]) -> None:
        values = {**metrics, **self.pace.measure(self.position.seconds, self.position.seen)}
        with self.state.writing(self.directory / LOGS):
            self.accelerator.log(values, step=self.position.step)
        if self.accelerator.is_main_process:
            with self.state.writing(self.directory / LOSSES):
                add_record(self.directory / LOSSES, {"step": self.position.step, **values})

    def _warn(self, message: str, progress: TrainingProgress) -> None:
        progress.warn(message)
        if self.accelerator.is_main_process:
            with self.state.writing(self.directory / LOSSES):
                add_record(self.directory / LOSSES, {"step": self.position.step, "warning": message})

    def _write_picture(self) -> None:
        picture = self.task.pictures(self.position.step)
        if picture is not None:
            step = self.position.step
            file, data = self.directory / PICTURES / f"{step:07d}.png", io.BytesIO()
            picture.save(data, format="PNG")
            with self.state.writing(file):
                write_file(file, data.getvalue())
            with self.state.writing(self.directory / LOGS):
                for tracker in self.accelerator.trackers:  # none where no logs were begun
                    tracker.log_images({PICTURES: np.asarray(picture)[None]}, step, dataformats="NHWC")
            self._report_due = True
            if time.monotonic() - self._reported >= RELOAD and not self._finished:
                self._report()

    def _report(self) -> None:
        """Drawing the curves takes a second: no more often than somebody sees them, and when the run ends."""
        if self.settings.picture_every:
            with self.state.writing(self.directory / REPORT):
                self.report()
        self._reported, self._report_due = time.monotonic(), False


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
