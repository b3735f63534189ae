"""What a training run leaves in its folder, and which model there is to be opened; told without torch.

A run of one stage: ``model/`` at its end, ``checkpoints/step-0000500/`` before, each of which is a model too. A run of
both: ``stage1/`` and ``stage2/``, folders of such runs, and ``model/``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

from hqtvae_fast.config import CheckpointError
from hqtvae_fast.files import read_text

CHECKPOINTS, MODEL, LOGS, PICTURES, REPORT = "checkpoints", "model", "logs", "pictures", "report.html"
RELOAD = 60
"""Seconds after which a page is loaded anew while its run goes on; nor is it written more often."""
RUN_FILE = "run.json"
STAGES = ("stage1", "stage2")
CONTENTS = "files.json"
"""In a checkpoint: names and sizes of all its other files, written when they are on the disk."""
_CONFIG_FILE = "config.json"  # what makes a folder a model; it is written last


def is_run(folder: Path) -> bool:
    """Whether a training run is, or was, at home here."""
    return any((folder / name).exists() for name in (RUN_FILE, CHECKPOINTS, f"{MODEL}/{_CONFIG_FILE}", *_stage_runs()))


def stage_runs(run: Path) -> dict[str, Path]:
    """The folders of a run of both stages by name, as far as they are there."""
    return {stage.replace("stage", "stage "): run / stage for stage in STAGES if (run / stage).is_dir()}


def _stage_runs() -> list[str]:
    return [f"{stage}/{RUN_FILE}" for stage in STAGES]


def model_of(run: Path) -> Path:
    """The folder of a run's model: the finished one, else, with a warning that says so, the newest whole checkpoint;
    of a run of both stages the later stage's. CheckpointError if there is none."""
    finished = run / MODEL
    if (finished / _CONFIG_FILE).is_file():
        return finished
    found = next(_unfinished(run), None)
    if found is None:
        raise CheckpointError(f"{run}: expected a model in this run's folder; got a run that has not saved any so far")
    # From one line, so that it is said once, however often a command asks.
    warnings.warn(f"{run}: not finished; opening {found.relative_to(run).as_posix()}", stacklevel=1)
    return found


def _unfinished(run: Path) -> Iterator[Path]:
    """Models there, the most trained one first."""
    for stage in reversed(STAGES):
        if (run / stage / MODEL / _CONFIG_FILE).is_file():
            yield run / stage / MODEL
        yield from _whole(run / stage)
    yield from _whole(run)


def _whole(run: Path) -> Iterator[Path]:
    for checkpoint in newest_first(run / CHECKPOINTS):
        if (checkpoint / _CONFIG_FILE).is_file() and not damage(checkpoint):
            yield checkpoint


def newest_first(checkpoints: Path) -> list[Path]:
    """``step-0000500``, ...; neither what is being written nor what was found damaged."""
    return sorted((path for path in checkpoints.glob("step-*") if path.is_dir()), reverse=True)


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files; empty if they are what was written, or if no list of them is there, as
    older versions wrote none."""
    file = checkpoint / CONTENTS
    if not file.is_file():
        return ""
    try:
        written = dict(json.loads(read_text(file)))
    except (ValueError, TypeError, OSError) as error:
        return f"{CONTENTS}: {error}"
    there = sizes(checkpoint)
    for name, size in written.items():
        if there.get(name) != size:
            found = f"{there[name]:,}" if name in there else "no such file"
            return f"{name}: expected {size:,} bytes, as written; got {found}"
    return ""


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below, by its path from there, but of the list of them."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != CONTENTS)
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
