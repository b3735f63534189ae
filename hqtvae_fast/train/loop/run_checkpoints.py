"""A run's checkpoints: folders that say of what they are whole, written so that a power cut leaves none that lies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from hqtvae_fast.files import sync_files, sync_folder, write_file
from hqtvae_fast.run_folder import CONTENTS, newest_first, sizes

DAMAGED = "damaged-"


class RunCheckpoints:
    """``step-0000500``, ... in one folder, of which the newest ``keep`` stay. Nothing here is for several processes:
    the main one writes, and all may read."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:07d}"

    def partial(self, step: int) -> Path:
        """Where the files of a checkpoint are written to, before :meth:`finish`."""
        return self.folder / f".partial-step-{step:07d}"

    def newest_first(self) -> list[Path]:
        return newest_first(self.folder)

    def newest(self) -> Path | None:
        return next(iter(self.newest_first()), None)

    def finish(self, step: int) -> None:
        """All files are written: wait until they are on the disk, name the checkpoint, drop the oldest ones."""
        partial, final = self.partial(step), self.path(step)
        sync_files(partial)
        write_file(partial / CONTENTS, json.dumps(sizes(partial), indent=1).encode() + b"\n")
        os.replace(partial, final)
        sync_folder(self.folder)
        for old in self.newest_first()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def drop_partial(self) -> None:
        """Remove what processes that were killed had begun to write."""
        for partial in self.folder.glob(".partial-*"):
            shutil.rmtree(partial, ignore_errors=True)

    def set_aside(self, checkpoint: Path) -> Path:
        """Give a damaged checkpoint a name under which it is none, so that a new one can have its own."""
        aside = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(checkpoint, aside)
        return aside
