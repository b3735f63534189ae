"""Rows of pictures with names beside them and captions above or below: what most figures are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from hqtvae_fast.pictures.images import WHITE, enlarge
from hqtvae_fast.pictures.lettering import Font, drawable, font_for

INK, FAINT = (36, 41, 47), (110, 118, 129)
RED, GREEN = (207, 34, 46), (26, 127, 55)
GAP, MARGIN = 4, 8  # pixels
MIN_SIDE = 96  # of a picture on a sheet: smaller ones are enlarged by a whole number
FRAME = 3
LINE = 1.3  # of a font's size
LINES = 2  # of a caption, at most


@dataclass(frozen=True)
class Cell:
    """A picture, or None for an empty place; a line or two of text below it; a frame of a colour around it."""

    image: Image.Image | None
    caption: str = ""
    frame: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Row:
    """``name`` stands to the left of its cells, in as many lines as it has; ``apart`` from the row above it."""

    name: str
    cells: Sequence[Cell]
    apart: bool = False


@dataclass
class Sheet:
    """``headings``: above the columns. ``gaps``: columns with a wider gap before them."""

    rows: Sequence[Row]
    headings: Sequence[str] = ()
    gaps: frozenset[int] = frozenset()
    scale: int | None = None
    font: Font = field(init=False)

    def __post_init__(self) -> None:
        sizes = {cell.image.size for row in self.rows for cell in row.cells if cell.image is not None}
        if not sizes:
            raise ValueError("expected at least one picture; got none")
        width = max(width for width, _ in sizes)
        self.scale = -(-MIN_SIDE // width) if self.scale is None else self.scale
        self.side = width * self.scale, max(height for _, height in sizes) * self.scale
        size = max(12, min(20, self.side[0] // 9))
        texts = [*self.headings, *(row.name for row in self.rows), *(c.caption for row in self.rows for c in row.cells)]
        self.font, self.line = font_for(drawable("".join(texts)), size), round(size * LINE)
        self.columns = max(len(row.cells) for row in self.rows)
        self.captions = [max(len(self._wrapped(cell.caption)) for cell in row.cells) for row in self.rows]
        lines = [line for row in self.rows for line in drawable(row.name).split("\n")]
        self.names = round(max(self.font.getlength(line) for line in lines)) + 2 * MARGIN if any(lines) else MARGIN
        self.top = MARGIN + self.line * bool(self.headings)
        self.apart = [4 * GAP * row.apart for row in self.rows]

    def draw(self) -> Image.Image:
        """The sheet, on white."""
        heights = [self.side[1] + GAP + self.line * lines for lines in self.captions]
        height = self.top + sum(heights) + sum(self.apart) + MARGIN
        image = Image.new("RGB", (self._left(self.columns) + MARGIN - GAP, height), WHITE)
        pen = ImageDraw.Draw(image)
        for column, heading in enumerate(self.headings):
            self._text(pen, heading, self._left(column) + self.side[0] / 2, self.top - self.line / 2, INK)
        y = self.top
        for row, height, apart in zip(self.rows, heights, self.apart, strict=True):
            y += apart
            self._name(pen, row.name, y + self.side[1] / 2)
            for column, cell in enumerate(row.cells):
                self._cell(image, pen, cell, (self._left(column), y))
            y += height
        return image

    def _left(self, column: int) -> int:
        wider = sum(gap <= column for gap in self.gaps)
        return self.names + column * (self.side[0] + GAP) + wider * 4 * GAP

    def _cell(self, sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, place: tuple[int, int]) -> None:
        if cell.image is None:
            return
        assert self.scale is not None
        sheet.paste(enlarge(cell.image, self.scale), place)
        x, y = place
        if cell.frame is not None:
            pen.rectangle((x, y, x + self.side[0] - 1, y + self.side[1] - 1), outline=cell.frame, width=FRAME)
        for number, line in enumerate(self._wrapped(cell.caption)):
            self._text(pen, line, x + self.side[0] / 2, y + self.side[1] + self.line * (number + 0.5), FAINT)

    def _name(self, pen: ImageDraw.ImageDraw, name: str, middle: float) -> None:
        lines = drawable(name).split("\n")
        for number, line in enumerate(lines):
            y = middle + (number - (len(lines) - 1) / 2) * self.line
            pen.text((self.names - MARGIN, y), line, INK, self.font, anchor="rm")

    def _text(self, pen: ImageDraw.ImageDraw, text: str, x: float, y: float, ink: tuple[int, int, int]) -> None:
        pen.text((x, y), self._cut(" ".join(drawable(text).split())), ink, self.font, anchor="mm")

    def _wrapped(self, text: str) -> list[str]:
        """In lines that fit a column, at spaces; the last of ``LINES`` has all that is left."""
        words, lines = drawable(text).split(), list[str]()
        while words:
            last = len(lines) == LINES - 1
            count = len(words) if last else 1
            while count < len(words) and self._fits(" ".join(words[: count + 1])):
                count += 1
            lines.append(" ".join(words[:count]))
            words = words[count:]
        return lines

    def _fits(self, text: str) -> bool:
        return self.font.getlength(text) <= self.side[0]

    def _cut(self, text: str) -> str:
        """What fits a column."""
        if self._fits(text):
            return text
        while text and not self._fits(f"{text}…"):
            text = text[:-1]
        return f"{text.rstrip(' ,')}…"
