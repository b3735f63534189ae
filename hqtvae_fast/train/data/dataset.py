"""Pictures as tensors with their conditions; what is random in them depends on (seed, epoch, index) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from hqtvae_fast.pictures.images import BrokenPictureError, to_tensor
from hqtvae_fast.train.data.captions import PLAIN, CaptionTemplate
from hqtvae_fast.train.data.sources import Source, read_picture

Conditioning = Literal["none", "class", "text"]
MAX_BROKEN_IN_A_ROW = 100
ENOUGH = 1.5
"""Pixels of a picture's short side for each of the smallest crop's: what is scaled twice is as sharp as once."""
KEPT_BYTES = 256 * 2**20  # of pictures made smaller, in each process that reads
_PROBED = 10  # pictures whose fields are looked at before training starts
_CHANCES = 2  # first of the numbers that a draw's chances are made from; the order of an epoch has 1 there


class Draw(NamedTuple):
    """A picture to be seen: its index in the source, and in which epoch."""

    epoch: int
    picture: int


class Chance(NamedTuple):
    """Everything random in one sample, as numbers in [0, 1). The defaults are evaluation's."""

    crop: float = 0.5
    """How far along the picture's long side the square lies: 0 left or top, 0.5 the centre, 1 right or bottom."""
    flip: float = 1.0
    """Mirrored below 0.5."""
    variant: float = 1.0
    choice: float = 0.0
    """These two go to :meth:`CaptionTemplate.caption`."""
    across: float = 0.5
    """How far along the short side the square lies, where it is smaller than that."""
    area: float = 1.0
    """How large the square is: from 0, the smallest that training cuts out, to 1, the largest."""


EVALUATION = Chance()


def chance(seed: int, draw: Draw) -> Chance:
    """The chances of a draw in training: the same wherever and whenever they are asked for."""
    words = np.random.SeedSequence((_CHANCES, seed, draw.epoch, draw.picture)).generate_state(
        len(Chance._fields), np.uint64
    )
    return Chance(*((words >> np.uint64(11)) * 2.0**-53).tolist())


@dataclass(frozen=True)
class Sample:
    """A picture, float32 [3, R, R] in [-1, 1], or what is stored of it (:class:`Stored`); its key; its condition; and
    the keys of broken pictures before it."""

    image: Tensor
    key: str
    label: int | None
    caption: str | None
    broken: tuple[str, ...]


Content = Literal["latents", "codes"]
"""Of a picture: the quantiser's input, float32 [d, h, w]; or the codes of all levels, integers [S], top level first."""


class Stored(Protocol):
    """What was computed from the pictures of a source beforehand, and is read in place of their pixels."""

    @property
    def content(self) -> Content: ...

    def read(self, index: int, mirrored: bool) -> Tensor:
        """Of one picture's centre square, or of that square mirrored. UnreadableError if there was no such picture."""


class PictureDataset(Dataset[Sample]):
    """Pictures of a source, by :class:`Draw`, or by index for epoch 0.

    resolution: R, the side of the squares that pictures are scaled and cropped to.
    condition: ``class`` reads each picture's field ``label``, an integer; ``text`` makes a caption with ``caption``.
    num_classes: labels must be below it.
    stored: what samples have in place of pixels. Pictures are not opened then, and crops do not vary.
    training: squares are cut out at random, half of the pictures are mirrored if ``flip``, captions vary; all of it
        from (seed, epoch, index). Otherwise the centre squares, and plain captions.
    crops: how large the squares of training are, as shares of the largest square's area: any from the first to the
        second.

    A picture that cannot be read, or whose label or caption cannot, is replaced by the next one that can, and named in
    the sample's ``broken``. ValueError if ten pictures, spread over the set, all lack the condition, if a label is out
    of range, or if a hundred in a row cannot be read.
    """

    def __init__(
        self,
        source: Source,
        resolution: int,
        *,
        condition: Conditioning = "none",
        caption: CaptionTemplate = PLAIN,
        num_classes: int | None = None,
        training: bool = True,
        flip: bool = False,
        crops: tuple[float, float] = (1.0, 1.0),
        seed: int = 0,
        stored: Stored | None = None,
    ) -> None:
        if resolution < 1:
            raise ValueError(f"resolution: expected a positive integer; got {resolution}")
        if condition not in get_args(Conditioning):
            raise ValueError(f"condition: expected one of {', '.join(get_args(Conditioning))}; got {condition!r}")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more; got {seed}")
        if not 0 < crops[0] <= crops[1] <= 1:
            raise ValueError(f"crops: expected two shares of the area, 0 < low <= high <= 1; got {tuple(crops)}")
        self.source, self.resolution, self.condition, self.caption = source, resolution, condition, caption
        self.num_classes, self.training, self.flip, self.seed = num_classes, training, flip, seed
        self.crops = crops if training else (1.0, 1.0)
        self.stored = stored
        self._kept: dict[int, Image.Image] = {}
        self._probe()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw | int) -> Sample:
        if not isinstance(draw, Draw):
            draw = Draw(0, draw)
        if not 0 <= draw.picture < len(self):
            raise IndexError(f"expected an index in [0, {len(self)}); got {draw.picture}")
        chances = chance(self.seed, draw) if self.training else EVALUATION
        broken: list[str] = []
        for step in range(min(len(self), MAX_BROKEN_IN_A_ROW)):
            index = (draw.picture + step) % len(self)
            try:
                return self._read(index, chances, tuple(broken))
            except UnreadableError as error:
                broken.append(self.source.key(index))
                reason = error
        raise ValueError(f"expected a readable picture among {len(broken)} from {broken[0]} on; the last: {reason}")

    def _read(self, index: int, chances: Chance, broken: tuple[str, ...]) -> Sample:
        label, caption = self._condition(index, chances)
        if self.stored is not None:
            image = self.stored.read(index, self._mirrored(chances))
        else:
            image = self.pixels(index, chances)
        return Sample(image, self.source.key(index), label, caption, broken)

    def pixels(self, index: int, chances: Chance = EVALUATION) -> Tensor:
        """The picture as float32 [3, R, R] in [-1, 1], by default its centre square. UnreadableError if broken."""
        low, high = self.crops
        try:
            image = _square(self._opened(index), self.resolution, chances, low + (high - low) * chances.area)
        except BrokenPictureError as error:
            raise UnreadableError(str(error)) from error
        if self._mirrored(chances):
            image = ImageOps.mirror(image)
        return to_tensor([image], self.resolution)[0].contiguous()

    def _opened(self, index: int) -> Image.Image:
        """The picture. In training one far larger than is needed is made smaller and kept, for a camera's pictures take
        longer to decode than to train on: it is the same whether it was kept or not."""
        if (kept := self._kept.get(index)) is not None:
            return kept
        image = read_picture(self.source, index)
        short = math.ceil(ENOUGH * self.resolution / math.sqrt(self.crops[0]))
        if not self.training or min(image.size) < 2 * short:
            return image
        width, height = (round(length * short / min(image.size)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        if (len(self._kept) + 1) * width * height * 3 <= KEPT_BYTES:
            self._kept[index] = image
        return image

    def _mirrored(self, chances: Chance) -> bool:
        return self.flip and chances.flip < 0.5

    def _condition(self, index: int, chances: Chance) -> tuple[int | None, str | None]:
        if self.condition == "none":
            return None, None
        try:
            fields = self.source.fields(index)
            if self.condition == "text":
                return None, self.caption.caption(fields, chances.variant, chances.choice)
            label = _label(fields)
        except (ValueError, OSError) as error:
            raise UnreadableError(f"{error}") from error
        if label < 0 or (self.num_classes is not None and label >= self.num_classes):
            limit = "" if self.num_classes is None else f" and below {self.num_classes}"
            raise ValueError(f"{self.source.key(index)}: expected a label of 0 or more{limit}; got {label}")
        return label, None

    def _probe(self) -> None:
        """A set without the condition wanted is refused here, rather than as a hundred broken pictures."""
        if len(self) == 0:
            raise ValueError("expected a source with pictures; got an empty one")
        for place in range(_PROBED):  # spread over the set, which may be sorted
            try:
                self._condition(place * len(self) // _PROBED, EVALUATION)
                return
            except UnreadableError as error:
                reason = error
        raise ValueError(f"condition={self.condition!r}: {self.source.key(0)}, like others: {reason}")


class UnreadableError(Exception):
    """A picture, or what is known of it, cannot be read: it is skipped and counted."""


def all_captions(source: Source, caption: CaptionTemplate = PLAIN) -> Iterator[str]:
    """Every caption that training can show, to train a tokenizer on; pictures without one are passed over."""
    for index in range(len(source)):
        try:
            yield from caption.every(source.fields(index))
        except (ValueError, OSError):
            continue


def _label(fields: dict[str, Any]) -> int:
    label = fields.get("label")
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(
            f"expected a field 'label', an integer; got {label!r} among {', '.join(fields) or 'no fields'}"
        )
    return label


def _square(image: Image.Image, resolution: int, chances: Chance, area: float) -> Image.Image:
    """A square of ``area``, a share of the largest square's, cut out where ``chances`` say and scaled to
    ``resolution``; the largest one in the centre is :func:`hqtvae_fast.pictures.images.fit`'s."""
    if image.size == (resolution, resolution) and area == 1:
        return image
    side = min(image.size) * math.sqrt(area)
    along, across = chances.crop, chances.across
    places = (along, across) if image.width >= image.height else (across, along)
    left, top = ((length - side) * place for length, place in zip(image.size, places, strict=True))
    box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box)
