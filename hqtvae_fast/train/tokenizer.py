"""The words that a text model reads: a checkpoint's tokenizer, or one trained on a set's captions; what it loses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hqtvae_fast.checkpoint import TOKENIZER_FILE
from hqtvae_fast.files import write_file
from hqtvae_fast.text import Lost, PromptTokenizer, open_tokenizer
from hqtvae_fast.train.config import Stage2Run
from hqtvae_fast.train.data import CaptionTemplate, Selection, Source, all_captions, caption_template

PAD, UNKNOWN = "[PAD]", "[UNK]"
SURVEYED = 20_000  # pictures: seconds, where a whole set may take an hour
CHUNK = 1000  # captions tokenized at once
LENGTH_STEP, LONGEST = 8, 64
"""A prefix is as long as the longest caption, in whole eights, and at most the paper's: each position costs a step."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's file, and the two sizes that it gives a text model."""

    file: Path
    size: int
    """prefix_vocab_size: its tokens."""
    length: int
    """prefix_length: how many of them the model reads of a caption."""

    @property
    def fields(self) -> dict[str, int]:
        """As fields of a TransformerConfig."""
        return {"prefix_vocab_size": self.size, "prefix_length": self.length}

    def tokens(self) -> dict[str, int]:
        """Ids by the tokens' spelling."""
        return open_tokenizer(self.file).get_vocab()


def make_tokenizer(run: Stage2Run, accelerator: Accelerator, source: Source, own: Vocabulary | None) -> Vocabulary:
    """:func:`vocabulary` of a run, the same in all processes: ``out/tokenizer.json``, made by the main one, once.

    ``own``: that of the checkpoint that the run begins with.
    """
    made: list[Vocabulary | None] = [None]
    if accelerator.is_main_process:
        given = {name: run.model.get(f"prefix_{name}") for name in ("vocab_size", "length")}
        made[0] = vocabulary(
            source,
            caption_template(run.caption),
            Path(run.out) / TOKENIZER_FILE,
            own=own,
            most=run.vocab_size,
            size=given["vocab_size"],
            length=given["length"],
        )
    broadcast_object_list(made)
    assert made[0] is not None
    return made[0]


def vocabulary(
    source: Source,
    caption: CaptionTemplate,
    file: Path,
    *,
    own: Vocabulary | None = None,
    most: int = 4096,
    size: int | None = None,
    length: int | None = None,
) -> Vocabulary:
    """The words of a set's captions. The tokenizer is written to ``file``; one that is there is left as it is.

    It is ``own`` where that reads every caption without an unknown token and without cutting, if need be with a longer
    prefix; else one of at most ``most`` tokens, trained on the captions. ``size`` and ``length`` are what a run says
    of the model: captions may be cut at such a length.
    """
    shown = list(all_captions(_spread(source), caption))
    if not file.is_file():
        if own is not None and (size is None or own.size <= size) and _reads_all(own, shown, length):
            write_file(file, own.file.read_bytes())
        else:
            train_tokenizer(all_captions(source, caption), file, vocab_size=most if size is None else min(most, size))
    taken = own if own is not None and own.file.read_bytes() == file.read_bytes() else None
    tokenizer = open_tokenizer(file)
    if length is None:
        length = max(_fitting(_longest(tokenizer, shown)), 0 if taken is None else taken.length)
    if size is None:
        size = tokenizer.get_vocab_size() if taken is None else taken.size
    return Vocabulary(file, size, length)


def _reads_all(own: Vocabulary, captions: list[str], length: int | None) -> bool:
    limit = max(own.length, LONGEST) if length is None else length
    lost = _lost(captions, PromptTokenizer(own.file, limit, own.size))
    return not lost.unknown and (length is not None or not lost.cut)


def _longest(tokenizer: Tokenizer, captions: Iterable[str]) -> int:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return max((len(encoding.ids) for part in _parts(captions) for encoding in tokenizer.encode_batch(part)), default=0)


def _fitting(tokens: int) -> int:
    """The prefix's length for captions of so many tokens."""
    return min(max(-(-tokens // LENGTH_STEP), 1) * LENGTH_STEP, LONGEST)


def train_tokenizer(captions: Iterable[str], file: str | os.PathLike[str], *, vocab_size: int = 16384) -> Tokenizer:
    """Byte-pair encoding of captions, written to ``file`` (a ``tokenizer.json``) and returned.

    Text is lower-cased, runs of spaces become one, punctuation stands alone. Token 0 is ``[PAD]``; 1 is ``[UNK]``, for
    characters that no caption has. There are at most ``vocab_size`` tokens; fewer if the captions give no more. The
    same captions, in any order, give the same file. ValueError if there are none, or the size does not even hold their
    characters.
    """
    tokenizer = _untrained()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[PAD, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    size = tokenizer.get_vocab_size()
    if size <= 2:
        raise ValueError("expected captions to train a tokenizer on; got none, or empty ones")
    if size > vocab_size:
        raise ValueError(f"vocab_size: expected at least {size}, the captions' characters and 2 more; got {vocab_size}")
    write_file(Path(file), tokenizer.to_str(pretty=True).encode())
    return tokenizer


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), spaces, normalizers.Strip()]
    )
    # Metaspace marks where words begin, so that decoding gives the spaces back.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def survey_captions(source: Source, caption: CaptionTemplate, tokenizer: PromptTokenizer) -> Lost:
    """What a model does not get to read of a training set's captions, all that training can show, counted: of all
    pictures, or of 20,000 that are spread evenly over a larger set."""
    return _lost(all_captions(_spread(source), caption), tokenizer)


def _spread(source: Source) -> Source:
    if len(source) <= SURVEYED:
        return source
    return Selection(source, np.linspace(0, len(source) - 1, SURVEYED).astype(np.int64).tolist())


def _lost(captions: Iterable[str], tokenizer: PromptTokenizer) -> Lost:
    lost = Lost(tokenizer.length)
    for part in _parts(captions):
        lost.add(tokenizer.read(part)[1])
    return lost


def _parts(captions: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(captions)
    while part := list(islice(iterator, CHUNK)):
        yield part
