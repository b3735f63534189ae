"""Captions made from a picture's fields."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CaptionTemplate:
    """How a caption is made: ``template`` with fields in braces, as in ``"{name}, {style}"``.

    In training each of ``variants``, pairs of a template and its probability, may take the template's place: where its
    fields are there and not empty. A field that is a list gives one of its entries: the first in evaluation, any in
    training. ``words[field][value]`` is what stands in a caption for a value, if not the value itself.
    """

    template: str
    variants: tuple[tuple[str, float], ...] = ()
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for template in self.templates:
            _check(template)
        total = sum(probability for _, probability in self.variants)
        if any(probability < 0 for _, probability in self.variants) or total > 1 + 1e-9:
            raise ValueError(f"variants: expected probabilities whose sum is at most 1; got {self.variants}")

    @property
    def templates(self) -> tuple[str, ...]:
        return (self.template, *(template for template, _ in self.variants))

    def caption(self, fields: Mapping[str, Any], variant: float = 1.0, choice: float = 0.0) -> str:
        """The caption for two numbers in [0, 1): ``variant`` picks the template, ``choice`` the entry of a list.

        The defaults are evaluation's: the template itself, the first entry. ValueError if its fields are not all there.
        """
        passed = 0.0
        for template, probability in self.variants:
            passed += probability
            if variant < passed:
                if self._missing(template, fields):
                    break
                return self._fill(template, fields, choice)
        if missing := self._missing(self.template, fields):
            there = ", ".join(fields) or "none"
            raise ValueError(f"caption {self.template!r}: expected fields {', '.join(missing)}; got {there}")
        return self._fill(self.template, fields, choice)

    def fits(self, fields: Mapping[str, Any]) -> bool:
        """Whether the fields of a picture make a caption."""
        return not self._missing(self.template, fields)

    def every(self, fields: Mapping[str, Any]) -> Iterator[str]:
        """All captions that :meth:`caption` can give, once each: what a tokenizer should be trained on."""
        captions: dict[str, None] = {}
        for template in self.templates:
            if not self._missing(template, fields):
                sizes = [len(value) for name in _names(template) if isinstance(value := fields[name], list)]
                for entry in range(max(sizes, default=1)):
                    captions[self._fill(template, fields, (entry + 0.5) / max(sizes, default=1))] = None
        yield from captions

    def _missing(self, template: str, fields: Mapping[str, Any]) -> list[str]:
        return [name for name in _names(template) if fields.get(name) in (None, "", [])]

    def _fill(self, template: str, fields: Mapping[str, Any], choice: float) -> str:
        values = {}
        for name in _names(template):
            value = fields[name]
            word = str(value[int(choice * len(value))] if isinstance(value, list) else value)
            values[name] = self.words.get(name, {}).get(word, word)
        return template.format_map(values)


def _names(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _check(template: str) -> None:
    try:
        names = _names(template)
    except ValueError as error:
        raise ValueError(f"caption {template!r}: expected fields in braces ({error})") from None
    if not names or not all(name.isidentifier() for name in names):
        raise ValueError(f"caption {template!r}: expected fields in braces, as in '{{name}}, {{style}}'; got {names}")


PLAIN = CaptionTemplate("{caption}")
"""The caption that comes with a picture: a shard's ``.txt``, a row of the captions file, a ``.json`` field."""

EMOJI = CaptionTemplate(
    "{name}, {style}",
    variants=(("{name}", 0.1), ("{keywords}, {style}", 0.05)),
    words={"style": {"fluent": "3d", "twemoji": "flat", "noto": "shaded"}},
)
"""Emoji pictures: "tiger face, 3d" (Fluent), "red apple, flat" (Twemoji: even colours), "anchor, shaded" (Noto: colours
that run into each other). In training the style is left out of 10% of captions, so that a bare name works too, and in
5% one of the keywords takes the name's place."""

CAPTIONS = {"plain": PLAIN, "emoji": EMOJI}


def caption_template(name_or_template: str) -> CaptionTemplate:
    """A recipe by its name in ``CAPTIONS``, or a template such as ``"{name}, {style}"``. ValueError if neither."""
    if name_or_template in CAPTIONS:
        return CAPTIONS[name_or_template]
    if "{" not in name_or_template:
        known = ", ".join(CAPTIONS)
        raise ValueError(f"caption: expected one of {known}, or fields in braces; got {name_or_template!r}")
    return CaptionTemplate(name_or_template)
