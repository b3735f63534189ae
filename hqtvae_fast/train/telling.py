"""Who hears of a run, where: what was picked, before it begins; its page, as it goes; how to go on, and its end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.hardware import device_name
from hqtvae_fast.model import cost
from hqtvae_fast.train.config import RunConfig
from hqtvae_fast.train.data import Facts
from hqtvae_fast.train.ending import say_end
from hqtvae_fast.train.estimate import in_words, training_seconds
from hqtvae_fast.train.memory import extras, share
from hqtvae_fast.train.report import write_report
from hqtvae_fast.train.start import Started

SHOWN = 5  # names of classes


@dataclass
class Telling:
    """``again``: the command that goes on with the run. ``whole``: the folder of a run of both stages, and the folders
    of its stages by name; None for a stage on its own."""

    again: str = ""
    whole: tuple[Path, Mapping[str, Path]] | None = None
    rows: dict[str, str] = field(default_factory=dict)
    """Of the page."""
    example: str = ""
    """A caption that a text model was trained on."""

    def begin(self, begun: Started[Any], config: HQTVAEConfig, steps: int, passes: float) -> None:
        """Say what will be trained on what, how, and about how long it takes."""
        run, facts = begun.run, begun.facts
        held = 0 if begun.held_out is None or run.validation else len(begun.held_out)
        pictures = f"{facts.pictures:,} pictures{f', {held:,} of them held out' if held else ''}{_of(facts)}"
        model = f"{_named(begun.size)}{_model(config, run)}"
        how = f"batches of {run.batch_size}, {steps:,} updates ({passes:,.3g} passes), {_precision(run)}"
        seconds = training_seconds(
            config, run.stage, share(begun), steps, begun.accelerator.device, run.precision, extras(run)
        )
        self.rows.update(
            {"pictures": pictures, f"{run.title}": f"{model}; {how}", "device": device_name(begun.accelerator.device)}
        )
        say(f"{run.title}: {model}; {pictures}; {how}; {in_words(seconds)} here (estimated)")

    def page(self, run: RunConfig) -> None:
        """Write the run's page. One that cannot be written is said, and costs nothing else."""
        try:
            write_report(*self._place(run), self.rows)
        except OSError as error:
            warnings.warn(f"{error.filename or run.out}: cannot be written ({error.strerror or error})", stacklevel=1)

    def end(self, run: RunConfig) -> None:
        """Of a stage: say where its model is and what to do next. A run of both says so when all is in its place. Where
        no pictures are drawn there is no page."""
        if run.picture_every:
            self.page(run)
        if self.whole is None:
            self.say_end(run)

    def say_end(self, run: RunConfig) -> None:
        say_end(*self._place(run), example=self.example, data=run.data)

    def _place(self, run: RunConfig) -> tuple[Path, Mapping[str, Path]]:
        return (Path(run.out), {run.title: Path(run.out)}) if self.whole is None else self.whole


def say(line: str) -> None:
    Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)


def _of(facts: Facts) -> str:
    """What they come with."""
    if facts.condition == "none":
        return ""
    if facts.condition == "text":
        return ", with captions"
    names = [name for name in facts.classes if name is not None]
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f", of {len(names):,} classes: {', '.join(names[:SHOWN])}{more}"


def _named(size: str) -> str:
    return f"size {size}, " if size else ""


def _model(config: HQTVAEConfig, run: RunConfig) -> str:
    vae, part = config.vae, "vae" if run.stage == "stage1" else "transformer"
    maps = " + ".join(f"{side}x{side}" for side in vae.level_sides)
    sides = f"{vae.resolution}x{vae.resolution} pictures as {maps} codes"
    return f"{sides}, {cost.sizes(config)[part] / 1e6:,.1f} M parameters"


def _precision(run: RunConfig) -> str:
    return {"no": "fp32"}.get(run.precision, run.precision)
