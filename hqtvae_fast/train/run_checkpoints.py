"""A run's checkpoints: folders that say of what they are whole, written so that a power cut leaves none that lies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from hqtvae_fast.files import read_text, sync_files, sync_folder, write_file

CONTENTS = "files.json"  # names and sizes of all other files, written when they are on the disk
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
        return sorted(self.folder.glob("step-*"), reverse=True)

    def newest(self) -> Path | None:
        return next(iter(self.newest_first()), None)

    def finish(self, step: int) -> None:
        """All files are written: wait until they are on the disk, name the checkpoint, drop the oldest ones."""
        partial, final = self.partial(step), self.path(step)
        sync_files(partial)
        write_file(partial / CONTENTS, json.dumps(_sizes(partial), indent=1).encode() + b"\n")
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
    there = _sizes(checkpoint)
    for name, size in written.items():
        if there.get(name) != size:
            found = f"{there[name]:,}" if name in there else "no such file"
            return f"{name}: expected {size:,} bytes, as written; got {found}"
    return ""


def _sizes(folder: Path) -> dict[str, int]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != CONTENTS)
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
