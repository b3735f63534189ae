"""Writing: files that are whole or absent, sheets of pictures, tables, progress."""

from __future__ import annotations

import io
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import typer
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hqtvae_fast.files import MAX_STEM_BYTES, cut_name, write_file
from hqtvae_fast.images import enlarge, grid, with_caption

WRITERS = min(4, os.cpu_count() or 1)
FILE_WIDTH = 120  # columns of a table that does not go to a terminal


def check_file(path: Path | None) -> None:
    """ValueError, before any work is done, where :func:`hqtvae_fast.files.write_file` could not write."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{path}: expected a file to write to; got a folder")
    if path.name == "":
        raise ValueError("expected the name of a file to write to; got none")
    check_folder(path.parent)


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


def png(image: Image.Image, about: str | None = None) -> bytes:
    """A PNG file; ``about`` goes into its text chunk ``Description``."""
    notes, data = PngInfo(), io.BytesIO()
    if about is not None:
        notes.add_text("Description", about)
    image.save(data, format="PNG", pnginfo=notes)
    return data.getvalue()


def webp(image: Image.Image, about: str | None = None) -> bytes:
    """A lossless WebP file, the same pixels as the PNG in fewer bytes; ``about`` goes into Exif's ImageDescription."""
    notes, data = Image.Exif(), io.BytesIO()
    if about is not None:
        notes[ExifTags.Base.ImageDescription] = about
    image.save(data, format="WEBP", lossless=True, exif=notes.tobytes() if about is not None else b"")
    return data.getvalue()


ENCODERS: dict[str, Callable[[Image.Image, str | None], bytes]] = {"png": png, "webp": webp}


class PictureWriter:
    """Takes pictures as they come: those in files of their own are written meanwhile, the sheet at the end.

    Files are compressed in threads beside the drawing (the encoders let go of Python's lock), a few at a time: pictures
    that come faster wait. What fails there is raised by a later :meth:`add`, or :meth:`finish`. On the sheet they are
    ``scale`` times as large, each above its caption if ``captions``. ``kind``, of :data:`ENCODERS`: what the files of
    their own are; the sheet is a PNG.
    """

    def __init__(
        self,
        sheet: Path | None,
        folder: Path | None,
        columns: int | None,
        *,
        scale: int = 1,
        captions: bool = False,
        kind: str = "png",
    ) -> None:
        check_file(sheet)
        check_folder(folder)
        self.sheet, self.folder, self.columns = sheet, folder, columns
        self.scale, self.captions, self.kind = scale, captions, kind
        self._kept: list[Image.Image] = []
        self._written = 0
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="encode")
        self._pending: deque[Future[None]] = deque()

    @property
    def wants_pictures(self) -> bool:
        return self.sheet is not None or self.folder is not None

    def add(self, image: Image.Image, name: str, about: str | None = None, caption: str = "") -> None:
        if self.sheet is not None:
            shown = enlarge(image, self.scale)
            self._kept.append(with_caption(shown, caption) if self.captions else shown)
        if self.folder is not None:
            if len(self._pending) >= 2 * WRITERS:
                self._one_done()
            path, encode = self.folder / f"{name}.{self.kind}", ENCODERS[self.kind]
            self._pending.append(self._writers.submit(lambda: write_file(path, encode(image, about))))

    def _one_done(self) -> None:
        self._pending.popleft().result()
        self._written += 1

    def finish(self) -> None:
        """Write the sheet and say what was written."""
        try:
            while self._pending:
                self._one_done()
        finally:
            self._writers.shutdown(cancel_futures=True)
        if self.folder is not None:
            typer.echo(f"wrote {count(self._written, 'picture')} into {self.folder}")
        if self.sheet is not None:
            sheet = grid(self._kept, self.columns)
            write_file(self.sheet, png(sheet))
            size = f"{sheet.width}x{sheet.height} pixels"
            typer.echo(f"wrote {self.sheet} ({count(len(self._kept), 'picture')}, {size})")


def count(number: int, noun: str) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def rate(number: int, noun: str, seconds: float) -> str:
    return f"{count(number, noun)} in {seconds:.2f} s: {number / max(seconds, 1e-9):.2f} {noun}s/s"


def table(title: str, *columns: str) -> Table:
    """A plain table: the first column is text, the others are aligned to the right."""
    made = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, min_width=len(title)
    )
    for index, name in enumerate(columns):
        made.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    return made


def say_failures(messages: Iterable[str]) -> None:
    """What was left out because it could not be read, an error's line each, on stderr."""
    for message in messages:
        typer.echo(f"{typer.style('error:', fg='red', bold=True)} {' '.join(message.split())}", err=True)


def facts(title: str, rows: Mapping[str, str]) -> Table:
    """A table of names and values."""
    made = table(title, "", "")
    made.show_header, made.columns[1].justify = False, "left"
    for name, value in rows.items():
        made.add_row(name, Text(value))
    return made


def show(shown: Table) -> None:
    """Print a table to stdout, with room for long names where that is no terminal."""
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
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal. Yields a function that takes the number of pictures just done."""
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
