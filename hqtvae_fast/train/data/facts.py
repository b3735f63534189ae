"""What a set of pictures says of itself: what they come with, which classes there are, and how many of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from hqtvae_fast.files import first_line, json_text, parse_json, read_text
from hqtvae_fast.train.data.captions import CaptionTemplate
from hqtvae_fast.train.data.dataset import Conditioning
from hqtvae_fast.train.data.selection import Selection, class_names, indices
from hqtvae_fast.train.data.sources import ClassFolder, Source

MAX_CLASSES = 1_000_000  # a label beyond is no number of a class, but a name or a date
_NAMES = ("class_name", "class", "cls")  # fields that name the class of a picture's label


@dataclass(frozen=True)
class Facts:
    """Of a set of pictures.

    condition: what the pictures come with: ``class`` (a label), ``text`` (a caption) or ``none``. fingerprint: the
    source's. caption: the template that captions are made with. classes: a name for each label, None for one without
    pictures; empty without labels. counts: pictures of each. note: what the user should know, or empty. example: one
    of the captions, or empty. labels: int64 [pictures], -1 for none, or None where the set has none.
    """

    pictures: int
    condition: Conditioning
    fingerprint: str
    caption: str
    classes: tuple[str | None, ...] = ()
    counts: tuple[int, ...] = ()
    note: str = ""
    example: str = ""
    labels: np.ndarray | None = field(default=None, compare=False, repr=False)

    def json(self) -> str:
        """A field a line. Labels that folders tell again at once are left out."""
        kept: dict[str, Any] = {
            **{
                name: getattr(self, name)
                for name in ("pictures", "condition", "fingerprint", "caption", "note", "example")
            },
            "num_classes": len(self.classes),
            "classes": {label: name for label, name in enumerate(self.classes) if name is not None},
            "counts": {label: count for label, count in enumerate(self.counts) if count},
        }
        if self.labels is not None and not _in_order(self.labels):
            kept["labels"] = self.labels.tolist()
        lines = ",\n".join(f"{json_text(name)}: {json_text(value)}" for name, value in kept.items())
        return f"{{\n{lines}\n}}\n"

    @classmethod
    def read(cls, file: Path, source: Source, caption: CaptionTemplate) -> Facts | None:
        """What :meth:`json` gave; None if that was of other pictures or captions, or cannot be read: survey anew."""
        try:
            facts = _from_json(parse_json(read_text(file), file))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        wanted = (len(source), source.fingerprint(), caption.template)
        return facts if (facts.pictures, facts.fingerprint, facts.caption) == wanted else None


def survey(source: Source, caption: CaptionTemplate) -> Facts:
    """Read what is known of each picture, once, and tell from it what a model can be trained to draw from.

    Text, if at least half of the pictures have what ``caption`` is made of; else classes, if at least half have a
    label; else nothing. The names of classes are the source's (folders', those in codes.json), or else those that the
    fields ``class_name``, ``class`` or ``cls`` give, or "class 5". ValueError, naming the picture, on a label that
    numbers no class.
    """
    known = _known(source, caption)
    pictures, labelled = len(source), int((known.labels >= 0).sum())
    captions = 0 < pictures <= 2 * known.captioned
    labels = 0 < pictures <= 2 * labelled
    if known.strange is not None and not captions:
        index, label = known.strange
        raise ValueError(f"{source.key(index)}: expected a label from 0 to {MAX_CLASSES - 1}; got {label}")
    condition: Conditioning = "text" if captions else "class" if labels else "none"
    notes = [_told(condition, pictures, known.captioned, labelled, both=captions and labels)]
    notes += known.doubts(condition)
    found: dict[str, Any] = {}
    if labels:
        counts = np.bincount(known.labels[known.labels >= 0], minlength=len(class_names(source) or ()))
        classes, doubts = _named(counts, _all_names(source, known.names))
        found = {"classes": classes, "counts": tuple(counts.tolist()), "labels": known.labels}
        notes += doubts
    note = "; ".join(filter(None, notes))
    found |= {"note": note, "example": known.example}
    return Facts(pictures, condition, source.fingerprint(), caption.template, **found)


@dataclass
class _Known:
    """``labels`` int64 [N], -1 for none; pictures that are ``captioned``, and an ``example``; the ``names`` that their
    fields give a label, in the order found, and how often they give one ``without`` a label; the first label that is a
    ``strange`` number, with its picture; pictures whose fields are ``unreadable``, and what is
    ``wrong`` with the first of them."""

    labels: np.ndarray
    captioned: int = 0
    example: str = ""
    names: dict[int, dict[str, None]] = field(default_factory=dict)
    without: Counter[str] = field(default_factory=Counter)
    strange: tuple[int, int] | None = None
    unreadable: int = 0
    wrong: str = ""

    def add(self, index: int, fields: Mapping[str, Any]) -> None:
        label = fields.get("label")
        name = next((fields[name] for name in _NAMES if isinstance(fields.get(name), str)), "").strip()
        if isinstance(label, bool) or not isinstance(label, int):
            self.without[name] += bool(name)
        elif not 0 <= label < MAX_CLASSES:
            self.strange = self.strange or (index, label)
        else:
            self.labels[index] = label
            if name:
                self.names.setdefault(label, {})[name] = None

    def doubts(self, condition: Conditioning) -> list[str]:
        """What pictures have that nothing can be made of."""
        told, named = [], sum(self.without.values())
        if self.unreadable:
            told.append(f"what is known of {self.unreadable:,} cannot be read: {self.wrong}")
        if named and condition == "none":
            some = ", ".join(list(+self.without)[:5])
            told.append(
                f"{named:,} of {_counted(len(self.labels))} name a class ({some}) without a number in the field label:"
                " to train on classes, number them, or put pictures into folders by class"
            )
        return told


def _known(source: Source, caption: CaptionTemplate) -> _Known:
    if (labels := _folder_labels(source)) is not None:  # and each picture has the same fields
        known, fields = _Known(labels), source.fields(0)
        return replace(known, captioned=len(source), example=caption.caption(fields)) if caption.fits(fields) else known
    known = _Known(np.full(len(source), -1, dtype=np.int64))
    for index in indices(source, "reading captions and labels"):
        try:
            fields = source.fields(index)
        except (ValueError, OSError) as error:
            known.unreadable, known.wrong = known.unreadable + 1, known.wrong or first_line(error)
            continue
        if caption.fits(fields):
            known.captioned += 1
            known.example = known.example or caption.caption(fields)
        known.add(index, fields)
    return known


def _folder_labels(source: Source) -> np.ndarray | None:
    """What class folders tell without their pictures' fields."""
    if isinstance(source, Selection):
        labels = _folder_labels(source.source)
        return None if labels is None else labels[source.indices]
    return source.labels if isinstance(source, ClassFolder) else None


def _all_names(source: Source, found: Mapping[int, Mapping[str, None]]) -> dict[int, list[str]]:
    """Names of each label: the source's own alone where it has them."""
    own = dict(enumerate(class_names(source) or ()))
    return {label: list(names) for label, names in found.items()} | {label: [name] for label, name in own.items()}


def _named(counts: np.ndarray, names: Mapping[int, list[str]]) -> tuple[tuple[str | None, ...], list[str]]:
    """A name by label, by which each class can be told from the others, and what there is to say of them."""
    classes: list[str | None] = [None] * len(counts)
    taken, doubts = Counter[str](), list[str]()
    for label in np.flatnonzero(counts).tolist():
        of_label = names.get(label) or [f"class {label}"]
        if len(of_label) > 1:
            doubts.append(f"label {label} is named {' and '.join(of_label[:3])}: the first is used")
        taken[of_label[0]] += 1
        classes[label] = of_label[0] if taken[of_label[0]] == 1 else f"{of_label[0]} ({label})"
    if len(doubts) > 2:
        doubts[1:] = [f"{len(doubts) - 1} other labels likewise"]
    return tuple(classes), doubts


def _told(condition: Conditioning, pictures: int, captioned: int, labelled: int, *, both: bool) -> str:
    """What becomes of captions and labels, where that is not plain."""
    of_all = f" of {_counted(pictures)}"
    if condition == "none":
        few = f"{captioned:,}{of_all} with a caption, {labelled:,} with a label: too few to train from"
        return few if captioned or labelled else ""
    have, what = (captioned, "caption") if condition == "text" else (labelled, "label")
    told = ["pictures have captions and labels: the captions are used"] if both else []
    if have < pictures:
        told.append(f"{pictures - have:,}{of_all} without a {what}, left out")
    if condition == "class" and captioned:
        told.append(f"{captioned:,}{of_all} with a caption: too few to train from")
    return "; ".join(told)


def _counted(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures:,} pictures"


def _in_order(labels: np.ndarray) -> bool:
    """Whether counts alone give them again, as they do a folder's."""
    return bool(labels[0] >= 0 and (np.diff(labels) >= 0).all())


def _from_json(kept: Mapping[str, Any]) -> Facts:
    """ValueError, TypeError, KeyError or AttributeError on what :meth:`Facts.json` does not give."""
    size = kept["num_classes"]
    names = {int(label): str(name) for label, name in kept["classes"].items()}
    found = {int(label): int(count) for label, count in kept["counts"].items()}
    counts = tuple(found.get(label, 0) for label in range(size))
    labels = np.array(kept.get("labels", np.repeat(np.arange(size), counts)), dtype=np.int64)
    own_type = (
        isinstance(kept["note"], str)
        and isinstance(kept["example"], str)
        and kept["condition"] in get_args(Conditioning)
    )
    if not own_type or set(names) != set(found) or labels.shape != ((kept["pictures"],) if size else (0,)):
        raise ValueError("expected what a survey wrote")
    return Facts(
        pictures=kept["pictures"],
        condition=kept["condition"],
        fingerprint=kept["fingerprint"],
        caption=kept["caption"],
        classes=tuple(names.get(label) for label in range(size)),
        counts=counts,
        note=kept["note"],
        example=kept["example"],
        labels=labels if size else None,
    )
