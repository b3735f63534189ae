"""Prompts to token ids, through the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from hqtvae_fast.checkpoint import Checkpoint

PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>")


class PromptTokenizer:
    """A ``tokenizer.json`` bound to a text model: pads and truncates to its prefix length."""

    def __init__(self, file: Path, length: int, vocab_size: int) -> None:
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{file}: not a tokenizer file ({error})") from error
        found = [self.tokenizer.token_to_id(token) for token in PAD_TOKENS]
        pad = next((index for index in found if index is not None), 0)
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(length=length, pad_id=pad)
        self.file, self.vocab_size = file, vocab_size
        if self.tokenizer.get_vocab_size() > vocab_size:
            count = self.tokenizer.get_vocab_size()
            raise ValueError(f"{file}: expected at most {vocab_size} tokens, as the model has; got {count}")

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token ids of prompts: int64 [B, length]."""
        return torch.tensor(
            [encoding.ids for encoding in self.tokenizer.encode_batch(list(prompts))], dtype=torch.int64, device="cpu"
        )


def load_tokenizer(checkpoint: Checkpoint) -> PromptTokenizer | None:
    """Of a text-conditional model that comes with one."""
    stage2 = checkpoint.config.transformer
    if stage2 is None or stage2.condition != "text" or checkpoint.tokenizer_file is None:
        return None
    return PromptTokenizer(checkpoint.tokenizer_file, stage2.prefix_length, stage2.prefix_vocab_size)
