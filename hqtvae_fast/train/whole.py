"""Both stages in one: pictures to codes and back, then codes from what the pictures come with."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hqtvae_fast.files import sync_folder
from hqtvae_fast.run_folder import MODEL
from hqtvae_fast.train.changes import changes, earlier_run, remembered
from hqtvae_fast.train.config import RunConfig, Stage1Run, Stage2Run, completed, read_run
from hqtvae_fast.train.data import are_codes, open_source, select
from hqtvae_fast.train.initial import init_vae, keeps_vae, own_condition
from hqtvae_fast.train.run import train_stage1, train_stage2
from hqtvae_fast.train.shown.telling import Telling
from hqtvae_fast.train.start import join_world
from hqtvae_fast.train.words import say
from hqtvae_fast.world import world

CODES = "codes.safetensors"
ONLY_STAGE2 = ("vae", "condition", "condition_dropout", "caption")


def train_whole(given: Mapping[str, Any], again: str = "") -> Path | None:
    """Train both stages into ``given["out"]``. ``given``: fields that somebody has named, of :class:`RunConfig`, which
    both stages get, and of :class:`Stage2Run`, those in ``ONLY_STAGE2``. With ``vae`` stage 1 is that checkpoint's,
    with ``init`` too, where it reconstructs the pictures well, and with shards of codes as data the one that made them.

    Called again it goes on where it was stopped. Returns the finished model's folder, ``out/model``; None if the run
    was stopped before its end. ``again``: the command that goes on with it.
    """
    began, out = time.monotonic(), Path(given["out"])
    telling = Telling(again, out)
    fields = {**given, "out": str(out / "stage2")}
    if not are_codes(given["data"]):
        vae = _stage1(given, out, telling)
        if vae is None:
            return None
        fields |= {"vae": str(vae), "code_cache": str(out / CODES)}
    if own_condition(given.get("init")) is None:  # stage 1 alone, or nothing
        fields.pop("init", None)
    if (minutes := given.get("stop_after_minutes")) is not None:
        fields["stop_after_minutes"] = max(0.01, minutes - (time.monotonic() - began) / 60)
    run = read_run(Stage2Run, None, fields)
    found = train_stage2(run, telling)
    if found is None:
        return None
    if world().rank == 0:
        _publish(found, out / MODEL)
        telling.say_end(run)
    PartialState().wait_for_everyone()
    return out / MODEL


def _stage1(given: Mapping[str, Any], out: Path, telling: Telling) -> Path | None:
    """A trained HQ-VAE: the one that is named, that of ``init`` if it does as it is, or the run's own, trained now
    unless it is there already; None if that was stopped."""
    if (named := given.get("vae")) is not None:
        return Path(named)
    folder = out / "stage1"
    fields = {name: value for name, value in given.items() if name not in ONLY_STAGE2}
    run = read_run(Stage1Run, None, {**fields, "out": str(folder)})
    if run.init is not None and _keeps_init(run.init, run, out):
        return Path(run.init)
    if _is_done(run):
        earlier = earlier_run(folder)
        changes(completed(run, remembered(run, earlier)), earlier)  # of which none may ask for another model
        say(f"stage 1 is done: {folder / MODEL}")
        return folder / MODEL
    model = train_stage1(run, telling)
    if model is not None and world().rank == 0:
        (out / CODES).unlink(missing_ok=True)  # of an earlier model
    return model


def _keeps_init(init: str, run: Stage1Run, out: Path) -> bool:
    """Whether the stage 1 of a checkpoint with both stages does as it is. A run that goes on shows what was found."""
    if own_condition(init) is None or earlier_run(out / "stage1"):
        return False
    if earlier_run(out / "stage2"):
        return True
    source = select(open_source(run.data), run.selected)
    return keeps_vae(join_world("no", out), init_vae(init, {})[1], source)


def _is_done(run: RunConfig) -> bool:
    """Whether the run has come to its end, and nobody asks for a longer one."""
    folder = Path(run.out)
    fields = earlier_run(folder)
    longer = any(name in run.given and fields.get(name) != getattr(run, name) for name in ("steps", "epochs"))
    return (folder / MODEL).is_dir() and bool(fields) and not longer


def _publish(model: Path, place: Path) -> None:
    """The finished model where the whole run's folder has it: links to the same files, or copies."""
    partial = place.with_name(f".partial-{place.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(model, partial, copy_function=_link)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(partial, place)
    sync_folder(place.parent)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # of a file system without links
        shutil.copy2(source, target)
