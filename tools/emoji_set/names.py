"""Which emoji there are, and what is said of them: Unicode's emoji-test.txt and CLDR's English annotations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree

from emoji_set import BuildError

VARIATION = "FE0F"  # the code point that asks for the coloured form; files and fonts may leave it out
_TONES = frozenset(("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"))
_LINE = re.compile(r"(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (?P<name>.+)")


@dataclass(frozen=True)
class Emoji:
    """An emoji: its code points in hexadecimal, and what is known of it."""

    codepoints: tuple[str, ...]
    name: str
    group: str
    subgroup: str
    keywords: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return to_text(self.codepoints)

    @property
    def stem(self) -> str:
        """Its part of a sample's key: ``1f636_200d_1f32b_fe0f``."""
        return "_".join(self.codepoints).lower()


def without_variation(codepoints: Iterable[str]) -> tuple[str, ...]:
    return tuple(code for code in codepoints if code != VARIATION)


def to_text(codepoints: Iterable[str]) -> str:
    return "".join(chr(int(code, 16)) for code in codepoints)


def read_emoji(test: str, annotations: Iterable[bytes]) -> list[Emoji]:
    """The fully qualified emoji of emoji-test.txt in its order, without those that name a skin tone.

    Skin tones are left out since five near copies of one picture in six would make the set a set of hands.
    ``annotations``: CLDR's XML files; an emoji newer than they are has no keywords.
    """
    keywords: dict[str, tuple[str, ...]] = {}
    for document in annotations:
        keywords |= _keywords(document)
    emoji = []
    group = subgroup = ""
    for line in test.splitlines():
        if line.startswith("# group:"):
            group = line.removeprefix("# group:").strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.removeprefix("# subgroup:").strip()
        elif match := _LINE.match(line):
            codes = tuple(match["codes"].split())
            if _TONES.isdisjoint(codes):
                words = keywords.get(to_text(codes)) or keywords.get(to_text(without_variation(codes)), ())
                emoji.append(Emoji(codes, match["name"].strip(), group, subgroup, words))
    if not emoji:
        raise BuildError("emoji-test.txt: expected lines like '1F600 ; fully-qualified # 😀 E1.0 grinning face'")
    return emoji


def _keywords(document: bytes) -> dict[str, tuple[str, ...]]:
    """Keywords by emoji, sorted; the annotations of type ``tts`` are names to be read out, and left out."""
    try:
        root = ElementTree.fromstring(document)
    except ElementTree.ParseError as error:
        raise BuildError(f"annotations: expected CLDR's XML; got a file that is none ({error})") from error
    found = {}
    for annotation in root.iter("annotation"):
        if annotation.get("type") is None:
            words = (word.strip() for word in (annotation.text or "").split("|"))
            found[annotation.get("cp", "")] = tuple(sorted(word for word in words if word))
    return found
