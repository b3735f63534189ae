"""Prompts to token ids, through the ``tokenizers`` library; and what of them the model does not get to read."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from hqtvae_fast.checkpoint import Checkpoint
from hqtvae_fast.fields import shown
from hqtvae_fast.files.kinds import refuse_others

PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>")
UNKNOWN_TOKENS = ("[UNK]", "<unk>", "<|unk|>")
CHARACTERS_A_TOKEN = 64  # of a long text this much is looked at first: no token of a known tokenizer is as long
SHOWN_WORDS, SHOWN_CHARACTERS = 5, 60


@dataclass
class Lost:
    """What a model does not read of some texts: ``cut``, those longer than its prefix, the first of them with what was
    cut off; ``unknown``, words with characters that no token has, and in how many texts each is."""

    length: int
    texts: int = 0
    cut: int = 0
    first_cut: tuple[str, str] | None = None
    unknown: Counter[str] = field(default_factory=Counter)
    with_unknown: int = 0

    def __bool__(self) -> bool:
        return bool(self.cut or self.unknown)

    def add(self, other: Lost) -> None:
        """Count another batch of texts in."""
        self.texts += other.texts
        self.cut += other.cut
        self.first_cut = self.first_cut or other.first_cut
        self.unknown += other.unknown
        self.with_unknown += other.with_unknown

    def describe(self, what: str) -> str:
        """One line; ``what``: prompt, say."""
        parts = []
        if self.first_cut is not None:
            kept, rest = self.first_cut
            many = f" (and {self.cut - 1:,} more of {self.texts:,})" if self.cut > 1 else ""
            count = len(rest.split())
            words = "the end was" if count < 2 else f"the last {count:,} words were"
            parts.append(
                f"the model reads {self.length} tokens: of {_cut(kept + rest)!r}{many} {words} cut,"
                f" from {_cut(rest.strip())!r} on"
            )
        if self.unknown:
            shown = ", ".join(repr(_cut(word)) for word, _ in self.unknown.most_common(SHOWN_WORDS))
            more = f" and {len(self.unknown) - SHOWN_WORDS:,} more" if len(self.unknown) > SHOWN_WORDS else ""
            many = f" in {self.with_unknown:,} of {self.texts:,}" if self.texts > 1 else ""
            parts.append(f"the model does not know {shown}{more}{many}, and draws without")
        return f"{what}: {'; '.join(parts)}"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def open_tokenizer(file: Path) -> Tokenizer:
    """ValueError naming the file if it is none that the library reads."""
    refuse_others(file, "a tokenizer file")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file}: not a tokenizer file ({error})") from error


class PromptTokenizer:
    """A ``tokenizer.json`` bound to a text model: pads and truncates to its prefix length, and says what that costs."""

    def __init__(self, file: Path, length: int, vocab_size: int) -> None:
        self.tokenizer = open_tokenizer(file)
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(length=length, pad_id=self._id_among(PAD_TOKENS) or 0)
        # A model's own unknown token goes first; one without any leaves characters out.
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        self.unknown_id = self._id_among([unknown] if unknown is not None else UNKNOWN_TOKENS)
        self.file, self.length, self.vocab_size = file, length, vocab_size
        if self.tokenizer.get_vocab_size() > vocab_size:
            count = self.tokenizer.get_vocab_size()
            raise ValueError(f"{file}: expected at most {vocab_size} tokens, as the model has; got {count}")

    def _id_among(self, names: Sequence[str]) -> int | None:
        found = (self.tokenizer.token_to_id(name) for name in names)
        return next((index for index in found if index is not None), None)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token ids of prompts: int64 [B, length]. A warning names what does not fit, and words that are not known."""
        ids, lost = self.read(prompts)
        if lost:
            warnings.warn(lost.describe("prompt"), stacklevel=2)
        return ids

    def read(self, prompts: Sequence[str]) -> tuple[Tensor, Lost]:
        """Token ids of prompts, int64 [B, length], and what is lost of them."""
        lost, encodings = Lost(self.length, len(prompts)), self._encodings(prompts)
        for prompt, encoding in zip(prompts, encodings, strict=True):
            self._note(lost, prompt, encoding)
        ids = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64, device="cpu")
        return ids.view(len(prompts), self.length), lost

    def _encodings(self, prompts: Sequence[str]) -> list[Encoding]:
        """Of a text that is much longer than the model reads no more is tokenized than tells that it is."""
        most = CHARACTERS_A_TOKEN * self.length
        encodings = self.tokenizer.encode_batch([_beginning(prompt, most) for prompt in prompts])
        for index, prompt in enumerate(prompts):
            size = most
            while len(prompt) > size and not encodings[index].overflowing:  # spaces, say, which are no tokens
                size *= 4
                encodings[index] = self.tokenizer.encode(_beginning(prompt, size))
        return encodings

    def _note(self, lost: Lost, prompt: str, encoding: Encoding) -> None:
        """Add what is lost of one prompt."""
        real = zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
        spans = [(index, start, end) for index, (start, end), special in real if not special and end > start]
        read = max((end for _, _, end in spans), default=0) if encoding.overflowing else len(prompt)
        if encoding.overflowing:
            lost.cut += 1
            lost.first_cut = lost.first_cut or (prompt[:read], prompt[read:])
        known = bytearray(read)
        # The unknown ones last: a mark of a word's beginning, which is known, has the place of its first character.
        for index, start, end in sorted(spans, key=lambda span: span[0] == self.unknown_id):
            known[start:end] = bytes([index != self.unknown_id]) * (end - start)
        words = {word for start, word in _words(prompt[:read]) if not all(known[start : start + len(word)])}
        lost.unknown.update(words)
        lost.with_unknown += bool(words)


def _beginning(text: str, most: int) -> str:
    """At most ``most`` characters, whole words where there are spaces. ValueError on text that UTF-8 cannot hold."""
    part = text[:most]
    try:
        part.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"prompt: expected text; got {shown(text)}, whose character {error.start} is none") from None
    return part if len(part) == len(text) else part[: max(map(part.rfind, " \n\t")) + 1] or part


def _words(text: str) -> Iterator[tuple[int, str]]:
    """Words between spaces, and where each begins."""
    place = 0
    for word in text.split():
        place = text.index(word, place)
        yield place, word
        place += len(word)


def load_tokenizer(checkpoint: Checkpoint) -> PromptTokenizer | None:
    """Of a text-conditional model that comes with one."""
    stage2 = checkpoint.config.transformer
    if stage2 is None or stage2.condition != "text" or checkpoint.tokenizer_file is None:
        return None
    return PromptTokenizer(checkpoint.tokenizer_file, stage2.prefix_length, stage2.prefix_vocab_size)
