"""Who hears of a run, where: what was picked, before it begins; its page, as it goes; how to go on, and its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hqtvae_fast.classes import Classes
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.hardware import device_name
from hqtvae_fast.model import cost
from hqtvae_fast.run_folder import stage_runs
from hqtvae_fast.train.config import RunConfig
from hqtvae_fast.train.data import Facts
from hqtvae_fast.train.memory import extras, share
from hqtvae_fast.train.shown.ending import say_end
from hqtvae_fast.train.shown.report import data_in_words, write_report
from hqtvae_fast.train.sizing.estimate import training_seconds
from hqtvae_fast.train.start import Started
from hqtvae_fast.train.words import duration, say


@dataclass
class Telling:
    """``again``: the command that goes on with the run. ``whole``: the folder of a run of both stages that a stage is
    a part of; None for a stage on its own. ``facts``: of the page, and ``example``, a caption: known from the start."""

    again: str = ""
    whole: Path | None = None
    facts: dict[str, str] = field(default_factory=dict)
    example: str = ""

    def begin(self, begun: Started[Any], config: HQTVAEConfig, steps: int, passes: float) -> None:
        """Say what will be trained on what, how, and about how long it takes."""
        run, device = begun.run, begun.accelerator.device
        held_out = 0 if begun.held_out is None else len(begun.held_out)
        pictures = f"{len(begun.training):,} pictures{_of(begun.facts)}, {held_out:,} held out"
        model = f"{f'size {begun.size}, ' if begun.size else ''}{_model(config, run)}"
        precision = "fp32" if run.precision == "no" else run.precision
        how = f"batches of {run.batch_size}, {steps:,} updates ({passes:,.3g} passes), {precision}"
        if run.accumulate > 1:
            how += f", in {run.accumulate:,} micro-batches"
        if getattr(run, "activation_checkpointing", False):
            how += ", activations computed twice"
        seconds = training_seconds(config, run.stage, share(begun), steps, device, run.precision, extras(run))
        self.facts |= {**data_in_words(begun.facts, len(begun.training), held_out), run.title: f"{model}; {how}"}
        self.facts["device"], self.example = device_name(device), begun.facts.example
        say(f"{run.title}: {model}; {pictures}; {how}; {_about(seconds)} here (estimated)")

    def page(self, run: RunConfig) -> None:
        """Write the run's page."""
        write_report(*self._place(run), self.facts)

    def end(self, run: RunConfig) -> None:
        """Of a stage: say where its model is and what to do next. A run of both says so when all is in its place."""
        if self.whole is None:
            self.say_end(run)

    def say_end(self, run: RunConfig) -> None:
        """The page as it stays, unless no pictures are drawn, and the last lines."""
        if run.picture_every != 0:
            self.page(run)
        say_end(*self._place(run), example=self.example, data=run.data)

    def _place(self, run: RunConfig) -> tuple[Path, dict[str, Path]]:
        own = Path(run.out)
        return (own, {run.title: own}) if self.whole is None else (self.whole, stage_runs(self.whole))


def _of(facts: Facts) -> str:
    """What they come with."""
    if facts.condition == "none":
        return ""
    if facts.condition == "text":
        return ", with captions"
    classes = Classes(len(facts.classes), facts.classes)
    return f", of {len(classes.trained):,} classes: {classes.listed()}"


def _about(seconds: float) -> str:
    return "a few seconds" if seconds < 5 else f"about {duration(seconds)}"


def _model(config: HQTVAEConfig, run: RunConfig) -> str:
    vae, part = config.vae, "vae" if run.stage == "stage1" else "transformer"
    maps = " + ".join(f"{side}x{side}" for side in vae.level_sides)
    sides = f"{vae.resolution}x{vae.resolution} pictures as {maps} codes"
    return f"{sides}, {cost.sizes(config)[part] / 1e6:,.1f} M parameters"
