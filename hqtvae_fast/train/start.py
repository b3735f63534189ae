"""What both stages begin with: processes, the pictures and what is known of them, and a run with all of its fields."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from hqtvae_fast.files import write_file
from hqtvae_fast.hardware import pick_device
from hqtvae_fast.run_folder import LOGS
from hqtvae_fast.train.changes import changes, earlier_run, remembered, write_run
from hqtvae_fast.train.config import Config, RunConfig, completed
from hqtvae_fast.train.data import (
    ClassFolder,
    Facts,
    Source,
    caption_template,
    class_names,
    hold_out,
    open_source,
    select,
    survey,
)
from hqtvae_fast.train.loop.position import more_updates
from hqtvae_fast.train.sizing.estimate import training_precision
from hqtvae_fast.train.sizing.sizes import Picked, pick
from hqtvae_fast.train.words import say
from hqtvae_fast.world import WorldError, world

DATA_FILE = "data.json"
NOTHING = ("none",)
"""``validation`` of a run that holds nothing out."""
PARTS, MOST = 10, 500  # times that a run saves, draws and validates by default, unless that is further apart


@dataclass(frozen=True)
class Started(Generic[Config]):
    """``run``: with every field. ``source``: all pictures; ``training`` and ``held_out``: parts of them, or of another
    set. ``size``: what the model was picked as, empty where it was given. ``goes_on``: from a checkpoint of its own."""

    run: Config
    accelerator: Accelerator
    source: Source
    training: Source
    held_out: Source | None
    facts: Facts
    size: str = ""
    goes_on: bool = False
    changed: tuple[str, ...] = ()
    """Fields of a run that goes on, in words, which are others than before."""
    more: float = 0.0
    """See :func:`hqtvae_fast.train.loop.position.more_updates`."""

    def take_changes(self) -> None:
        """For the main process, when the run stands where it goes on from: it does so with the fields it has now."""
        if self.changed:
            say(f"changed: {'; '.join(self.changed)}")
        write_run(Path(self.run.out), self.run)


def start(run: Config, settle: Callable[[Config, Source], tuple[Config, list[str]]] | None = None) -> Started[Config]:
    """Processes, precision, logs, pictures; the run's folder, whose ``data.json`` keeps what is known of the pictures.

    What nobody has named is what the run was begun with, if it goes on, or else what ``settle`` makes of the run and
    its data, with a line for each, or else picked to fit.
    """
    source = select(open_source(run.data, codes=run.stage == "stage2"), run.selected)
    run, told = (run, []) if settle is None else settle(run, source)
    directory, device = Path(run.out), pick_device(None)
    directory.mkdir(parents=True, exist_ok=True)
    earlier = earlier_run(directory)
    precision = run.precision
    if "precision" not in run.given:
        precision = earlier.get("precision") or training_precision(device)
    accelerator = join_world(precision, directory)
    accelerator.init_trackers(LOGS)
    for line in told:
        say(line)
    facts = known(directory, accelerator, run, source)
    picked = Picked("", remembered(run, earlier)) if earlier else pick(run, facts, device)
    size = {"size": picked.size} if picked.size else {}
    run = completed(run, {**picked.fields, **size, "precision": precision})
    set_seed(run.seed, device_specific=True)
    split = parts(run, source, facts)
    changed, more = tuple(changes(run, earlier)), more_updates(directory, run.batch_size)
    return Started(run, accelerator, source, *split, facts, picked.size, bool(earlier), changed, more)


def known(directory: Path, accelerator: Accelerator, run: RunConfig, source: Source) -> Facts:
    """What the data says of its pictures: read once by the main process, and from then on from the run's folder."""
    file, caption = directory / DATA_FILE, caption_template(getattr(run, "caption", "plain"))
    facts = Facts.read(file, source, caption)
    if accelerator.is_main_process and facts is None:
        facts = survey(source, caption)
        write_file(file, facts.json().encode())
        if facts.note:
            say(facts.note)
    accelerator.wait_for_everyone()
    return facts or Facts.read(file, source, caption) or survey(source, caption)


def parts(run: RunConfig, source: Source, facts: Facts) -> tuple[Source, Source | None]:
    """The training set and the held-out pictures, which may be of a set of their own with some of its classes."""
    if run.validation == NOTHING:
        return source, None
    if not run.validation:
        return hold_out(source, facts, run.seed)
    own = open_source(run.validation, codes=run.stage == "stage2")
    if isinstance(own, ClassFolder) and facts.condition == "class":
        names = class_names(source) or [name or "" for name in facts.classes]
        own = open_source(run.validation, class_names=names)
    return source, select(own, run.selected)


def intervals(run: RunConfig, steps: int) -> dict[str, int]:
    """How often a run saves, draws and validates: as it says, or some ten times."""
    usual = min(MOST, max(1, steps // PARTS))
    names = ("save_every", "picture_every", "validate_every")
    named = {name: getattr(run, name) for name in names}
    return {name: usual if value is None else value for name, value in named.items()}


def join_world(precision: str, directory: Path) -> Accelerator:
    """This process among those that train together, which are the ones that :func:`hqtvae_fast.world.world` tells of.

    Their group, if this begins it, ends with the process: a script may train one run after another. WorldError where
    accelerate sees others: each process would be the only one, and all would write one run.
    """
    here = world()
    # Codebooks are the same on every rank by construction: nothing to send before each pass.
    plain = DistributedDataParallelKwargs(broadcast_buffers=False)
    # accelerate keeps the precision of a process's first run, and refuses another one for the next.
    AcceleratorState._reset_state(reset_partial_state=False)
    begins = here.size > 1 and not torch.distributed.is_initialized()
    accelerator = Accelerator(
        # Without a GPU it takes several processes for a job only if it is told that they use the CPU.
        cpu=here.size > 1 and not torch.accelerator.is_available(),
        mixed_precision=precision,
        log_with="tensorboard",
        project_dir=str(directory),
        kwargs_handlers=[plain],
    )
    if begins:
        atexit.register(_leave_world)
    found = (accelerator.process_index, accelerator.num_processes)
    if found != (here.rank, here.size):
        raise WorldError(
            f"WORLD_SIZE: expected process {here.rank} of {here.size}, as the launcher says; accelerate found"
            f" {found[0]} of {found[1]} (on {accelerator.device}): start one process, or set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def _leave_world() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
