"""What is said when a run ends: where its model is, how good it is, what to look at, and what to run next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from hqtvae_fast.checkpoint_config import read_config
from hqtvae_fast.run_folder import MODEL, PICTURES, REPORT
from hqtvae_fast.train.loop.records import LOSSES, read_records
from hqtvae_fast.train.shown.report import figures
from hqtvae_fast.train.words import say

SHOWN = 3  # classes in a command
ANY_PROMPT = "what to draw"


def say_end(directory: Path, runs: Mapping[str, Path], *, example: str = "", data: Sequence[str] = ()) -> None:
    """Print :func:`end_lines` to stderr; for the main process."""
    for line in end_lines(directory, runs, example=example, data=data):
        say(line)


def end_lines(directory: Path, runs: Mapping[str, Path], *, example: str = "", data: Sequence[str] = ()) -> list[str]:
    """Of a run that is done, a line each. ``directory``: its folder, with ``model/``; ``runs``: of its stages by name,
    which may be the same folder; the rest as for :func:`next_command`."""
    lines = [f"finished: {directory / MODEL}"]
    for name, run in runs.items():
        told = figures(read_records(run / LOSSES)[0])
        of = "held out" if "held out" in told else "training"
        lines += [f"{name}, {of}: {told[of]}"] if of in told else []
    sheets = [sorted((run / PICTURES).glob("*.png"))[-1:] for run in runs.values()]
    pictures = [directory / REPORT] * (directory / REPORT).is_file() + (sheets[-1] if sheets else [])
    lines += [f"to look at: {', '.join(map(str, pictures))}"] if pictures else []
    return [*lines, f"next: {next_command(directory, example=example, data=data)}"]


def next_command(directory: Path, *, example: str = "", data: Sequence[str] = ()) -> str:
    """A command that can be run as it stands, if the model is whole: it draws. After stage 1 alone it trains stage 2.

    ``example``: a caption that a text model was trained on. ``data``: what stage 1 was trained on.
    """
    config = read_config(directory / MODEL)
    stage2, classes = config.transformer, config.classes
    if stage2 is None:
        place = directory.with_name(f"{directory.name}-stage2")
        given = [word for path in data for word in ("--data", path)]
        return shlex.join(["hqtvae", "train", "stage2", *given, "--vae", str(directory), "--out", str(place)])
    what = {"class": ["--classes", classes.spelled(classes.trained[:SHOWN])]}
    what["text"] = ["--prompt", example or ANY_PROMPT]
    return shlex.join(["hqtvae", "sample", str(directory), *what.get(stage2.condition, ["--num-images", "8"])])
