"""Pictures to files: in files of their own as they come, or on one sheet at the end."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import typer
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from hqtvae_fast.cli.output import check_folder, check_picture_file, count, picture_kind
from hqtvae_fast.files import write_file
from hqtvae_fast.pictures.images import enlarge, grid, with_caption

WRITERS = min(4, os.cpu_count() or 1)


def png(image: Image.Image, about: str | None = None) -> bytes:
    """A PNG file; ``about`` goes into its text chunk ``Description``."""
    notes, data = PngInfo(), io.BytesIO()
    if about is not None:
        notes.add_text("Description", about)
    image.save(data, format="PNG", pnginfo=notes)
    return data.getvalue()


def jpg(image: Image.Image, about: str | None = None) -> bytes:
    """A JPEG file, smaller and not quite the same pixels; ``about`` goes into its comment."""
    data = io.BytesIO()
    image.convert("RGB").save(data, format="JPEG", quality=95, comment=about)
    return data.getvalue()


def webp(image: Image.Image, about: str | None = None) -> bytes:
    """A lossless WebP file, the same pixels as the PNG in fewer bytes; ``about`` goes into Exif's ImageDescription."""
    notes, data = Image.Exif(), io.BytesIO()
    if about is not None:
        notes[ExifTags.Base.ImageDescription] = about
    image.save(data, format="WEBP", lossless=True, exif=notes.tobytes() if about is not None else b"")
    return data.getvalue()


ENCODERS: dict[str, Callable[[Image.Image, str | None], bytes]] = {"png": png, "jpg": jpg, "webp": webp}


class PictureWriter:
    """Takes pictures as they come: those in files of their own are written meanwhile, the sheet at the end.

    Files are compressed in threads beside the drawing (the encoders let go of Python's lock), a few at a time: pictures
    that come faster wait. What fails there is raised by a later :meth:`add`, or :meth:`finish`. On the sheet they are
    ``scale`` times as large, each above its caption if ``captions``. ``kind``, of :data:`ENCODERS`: what the files of
    their own are; of the sheet its name says it.
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
        check_picture_file(sheet)
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
        said = [] if self.folder is None else [f"wrote {count(self._written, 'picture')} into {self.folder}"]
        if self.sheet is not None:
            sheet = grid(self._kept, self.columns)
            write_file(self.sheet, ENCODERS[picture_kind(self.sheet)](sheet, None))
            size = f"{sheet.width}x{sheet.height} pixels"
            said.append(f"wrote {self.sheet} ({count(len(self._kept), 'picture')}, {size})")
        typer.echo("\n".join(said), nl=bool(said))
