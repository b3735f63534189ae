"""Training a tokenizer on a set's captions, and what a tokenizer loses of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hqtvae_fast.files import write_file
from hqtvae_fast.text import Lost, PromptTokenizer
from hqtvae_fast.train.data import CaptionTemplate, Selection, Source, all_captions

PAD, UNKNOWN = "[PAD]", "[UNK]"
SURVEYED = 20_000  # pictures: seconds, where a whole set may take an hour
CHUNK = 1000  # captions tokenized at once


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
    if len(source) > SURVEYED:
        source = Selection(source, np.linspace(0, len(source) - 1, SURVEYED).astype(np.int64).tolist())
    captions, lost = all_captions(source, caption), Lost(tokenizer.length)
    while part := list(islice(captions, CHUNK)):
        lost.add(tokenizer.read(part)[1])
    return lost
