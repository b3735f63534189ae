"""All that a run goes on from: its models, optimisers, random numbers and position, as one folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from hqtvae_fast.checkpoint import CheckpointError
from hqtvae_fast.run_folder import CHECKPOINTS, damage
from hqtvae_fast.train.loop.position import OtherRunError, Position, read_position
from hqtvae_fast.train.loop.run_checkpoints import RunCheckpoints
from hqtvae_fast.train.words import say

PROBLEM = 300  # characters of an error; torch's of a model of other sizes lists every weight


class TrainingError(ValueError):
    """Training cannot go on; the message names the update and the batch, or the file, and the last good checkpoint."""


class Model(Protocol):
    """What is trained, as this package's other parts open it."""

    def save(self, directory: Path) -> None: ...

    def load(self, directory: Path) -> None: ...


class RunState:
    """The checkpoints of a run. Each is a model in this package's format, written by the ``model`` itself, with the
    training state beside it, which is accelerate's."""

    def __init__(self, accelerator: Accelerator, model: Model, directory: Path, keep: int, position: Position) -> None:
        self.accelerator, self.model, self.position = accelerator, model, position
        self.checkpoints = RunCheckpoints(directory / CHECKPOINTS, keep)
        accelerator.register_save_state_pre_hook(self._save_model)
        accelerator.register_load_state_pre_hook(self._load_model)

    def _save_model(self, models: list[Any], weights: list[Any], directory: str) -> None:
        weights.clear()  # what is left here accelerate writes, in a format of its own
        if self.accelerator.is_main_process:
            self.model.save(Path(directory))
            self.position.save(Path(directory))

    def _load_model(self, models: list[Any], directory: str) -> None:
        models.clear()
        self.model.load(Path(directory))

    def of_all(self, own: list[Any]) -> list[Any]:
        """What each process has to say, to all of them."""
        return own if self.accelerator.num_processes == 1 else list(gather_object(own))

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """What cannot be written, on a full disk say, is named, and so is what there is to go on from."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError, CheckpointError) as error:  # torch.save's is a RuntimeError
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise TrainingError(
                f"{path}: cannot be written ({reason}); update {self.position.step}; the same command goes on from the"
                f" last good checkpoint: {self.checkpoints.newest() or 'none yet'}"
            ) from error

    # -------------------------------------------------------------------------------------------------------- saving

    def save(self) -> Path:
        """Everything into a folder that takes its name when it is whole, and which is returned; then drop the oldest.
        Every process must call it."""
        step, main = self.position.step, self.accelerator.is_main_process
        final, partial = self.checkpoints.path(step), self.checkpoints.partial(step)
        if final.exists():
            return final
        if main:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with self.writing(final):
                self.accelerator.save_state(str(partial))
            self.accelerator.wait_for_everyone()
            if main:
                with self.writing(final):
                    self.checkpoints.finish(step)
        finally:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
        return final

    # ------------------------------------------------------------------------------------------------------ going on

    def resume(self) -> dict[Path, str]:
        """Go to the newest whole checkpoint, or stay at the beginning without any; returns what was wrong with those
        that were left out, which have other names now. TrainingError if there are some and none of them is whole."""
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
            say(f"going on from {found}, update {self.position.step}")
        return self._tidy(refused) if self.accelerator.is_main_process else {}

    def _load(self, checkpoint: Path) -> str:
        """What is wrong with a checkpoint, for one process or another; empty, on all of them, if it is loaded."""
        problem = damage(checkpoint)
        if not problem:
            try:
                self.position.go_to(read_position(checkpoint))
                self.accelerator.load_state(str(checkpoint))
            except OtherRunError:
                raise
            except Exception as error:
                problem = " ".join(str(error).split())[:PROBLEM] or type(error).__name__
        return next((told for told in self.of_all([problem]) if told), "")

    def _tidy(self, refused: dict[Path, str]) -> dict[Path, str]:
        """Move damaged checkpoints out of the way of new ones."""
        self.checkpoints.drop_partial()
        return {self.checkpoints.set_aside(checkpoint): problem for checkpoint, problem in refused.items()}
