"""The tokenizer of the released text models. Their checkpoints come without it; it lies in the released code."""

from __future__ import annotations

from pathlib import Path

from tokenizers import CharBPETokenizer, Tokenizer

from hqtvae_fast.files.kinds import refuse_others

FOLDER = "hqvae/tokenizers/pretrained"
"""Where the released repository has it (github.com/kakaobrain/hqtransformer)."""
VOCABULARY, MERGES = "bpe-16k-vocab.json", "bpe-16k-merges.txt"


def read_released_tokenizer(folder: Path) -> Tokenizer:
    """The byte-pair encoding of 16,384 tokens, lower-cased, in ``folder``; token 0 is [PAD].

    ValueError naming what is missing, or a file that is not what its name says.
    """
    files = [folder / VOCABULARY, folder / MERGES]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{folder}: expected {VOCABULARY} and {MERGES}, as in {FOLDER}; found no {file.name}")
        refuse_others(file, "a file of a tokenizer")
    try:
        tokenizer = CharBPETokenizer.from_file(*map(str, files), unk_token="[UNK]", lowercase=True)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{folder}: {VOCABULARY} and {MERGES} make no tokenizer ({error})") from error
    tokenizer.add_special_tokens(["[PAD]"])
    return Tokenizer.from_str(tokenizer.to_str())
