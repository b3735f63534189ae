"""One tuning at a time on a machine: two would time each other."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "tune.lock"


@contextmanager
def tuning(folder: Path) -> Iterator[None]:
    """Held meanwhile; given up with the process, however it ends. ValueError where another process has it; OSError
    where the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(f"{file.name}: another `hqtvae tune` is at work (process {file.read().strip()})") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
