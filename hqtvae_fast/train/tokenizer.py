"""Training a tokenizer on a set's captions."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hqtvae_fast.files import write_file

PAD, UNKNOWN = "[PAD]", "[UNK]"


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
