"""What is said: counts, tables, progress; and whether what is asked for can be written at all."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hqtvae_fast.cli.streams import talk_aside
from hqtvae_fast.files import MAX_STEM_BYTES, cut_name

if TYPE_CHECKING:
    from rich.table import Table

PATIENCE = 1.0  # seconds
PICTURE_KINDS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp", "": "png"}
FILE_WIDTH = 120  # columns of a table that does not go to a terminal


def check_file(path: Path | None) -> None:
    """ValueError, before any work is done, where :func:`hqtvae_fast.files.write_file` could not write.

    Of stdout itself, nothing but the file goes there from now on.
    """
    if path is None:
        return
    talk_aside(path)
    if path.is_dir():
        raise ValueError(f"{path}: expected a file to write to; got a folder")
    if path.name == "":
        raise ValueError("expected the name of a file to write to; got none")
    check_folder(path.parent)


def picture_kind(path: Path) -> str:
    """What a picture file's name says that it is: png, jpg or webp; png where it says nothing."""
    suffix = path.suffix.lower()
    if suffix not in PICTURE_KINDS:
        names = ", ".join(name for name in PICTURE_KINDS if name)
        raise ValueError(f"{path}: expected the name of a picture file, one of {names}; got {suffix}")
    return PICTURE_KINDS[suffix]


def check_picture_file(path: Path | None) -> None:
    """:func:`check_file` of a file whose name says what picture it is."""
    check_file(path)
    if path is not None:
        picture_kind(path)


def check_folder(folder: Path | None) -> None:
    """ValueError, before any work is done, where files could not be written into a folder."""
    if folder is None:
        return
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"{folder}: expected a folder to write into; {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: cannot be written to (permission denied)")


def count(number: int, noun: str) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def rate(number: int, noun: str, seconds: float) -> str:
    return f"{count(number, noun)} in {seconds:.2f} s: {number / max(seconds, 1e-9):.2f} {noun}s/s"


def table(title: str, *columns: str) -> Table:
    """A plain table: the first column is text, the others are aligned to the right."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, min_width=len(title)
    )
    for index, name in enumerate(columns):
        made.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    return made


def say_errors(messages: Iterable[str]) -> None:
    """A line on stderr for each: what ended a command, or what was left out because it could not be read."""
    for message in messages:
        typer.echo(f"{typer.style('error:', fg='red', bold=True)} {' '.join(message.split())}", err=True)


def facts(title: str, rows: Mapping[str, str]) -> Table:
    """A table of names and values."""
    from rich.text import Text

    made = table(title, "", "")
    made.show_header, made.columns[1].justify = False, "left"
    for name, value in rows.items():
        made.add_row(name, Text(value))
    return made


def show(shown: Table) -> None:
    """Print a table to stdout, with room for long names where that is no terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(shown)


def unique_names(names: Sequence[str]) -> list[str]:
    """The names' stems, as file names that have room for a suffix; a second ``a`` becomes ``a-2``."""
    used: set[str] = set()
    unique = []
    for name in names:
        stem, suffix = cut_name(Path(name).stem, MAX_STEM_BYTES) or "picture", 1
        candidate = stem
        while candidate in used:
            suffix += 1
            candidate = f"{stem}-{suffix}"
        used.add(candidate)
        unique.append(candidate)
    return unique


@contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Say on stderr what is waited for, such as ``Opening demo``: on a terminal at once, beside a spinner that goes
    away; elsewhere as a line, if it takes longer than :data:`PATIENCE`."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(doing):
            yield
        return
    timer = threading.Timer(PATIENCE, lambda: typer.echo(f"{doing} ...", err=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal. Yields a function that takes the number of pictures just done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done: None
        return
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)
