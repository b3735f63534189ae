"""A tokenizer trained on captions: the same every time, and as the text model's reader wants it."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from hqtvae_fast.text import PromptTokenizer
from hqtvae_fast.train.tokenizer import train_tokenizer

CAPTIONS = [
    f"{colour} {thing}, {style}"
    for colour in ("red", "blue", "grinning", "Flag: of")
    for thing in ("face", "apple", "o’clock", "Señor", "日本")
    for style in ("3d", "flat", "shaded")
]


def test_round_trip(tmp_path):
    train_tokenizer(CAPTIONS, tmp_path / "new" / "tokenizer.json", vocab_size=100)
    read = PromptTokenizer(tmp_path / "new" / "tokenizer.json", 16, 100)
    with pytest.warns(UserWarning, match="prompt: the model does not know '☃' in 1 of 4"):
        ids = read(["  Blue  apple, 3D", "flag: of señor, shaded", "red ☃", ""])
    assert ids.shape == (4, 16)
    assert int(ids.max()) < 100
    decoded = [read.tokenizer.decode(row) for row in ids.tolist()]
    assert decoded[:2] == ["blue apple, 3d", "flag: of señor, shaded"]
    assert decoded[3] == ""
    assert ids[3].tolist() == [0] * 16  # [PAD]
    assert 1 in ids[2]  # [UNK]: no caption has a snowman
    assert 1 not in ids[:2]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tokenizer.json"]


def test_frequent_words_become_tokens(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, tmp_path / "tokenizer.json", vocab_size=200)
    assert len(tokenizer.encode("red apple, flat").ids) == 4
    assert tokenizer.get_vocab_size() <= 200


def test_the_same_captions_give_the_same_file(tmp_path):
    train_tokenizer(CAPTIONS, tmp_path / "a.json", vocab_size=90)
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    train_tokenizer(iter(shuffled), tmp_path / "b.json", vocab_size=90)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    code = (
        "from hqtvae_fast.train.tokenizer import train_tokenizer\n"
        f"train_tokenizer({CAPTIONS!r}, {str(tmp_path / 'c.json')!r}, vocab_size=90)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "RAYON_NUM_THREADS": "1"})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "c.json").read_bytes()


def test_refused(tmp_path):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match="got none, or empty ones"):
        train_tokenizer([], file)
    with pytest.raises(ValueError, match="got none, or empty ones"):
        train_tokenizer([" ", ""], file)
    with pytest.raises(ValueError, match=r"vocab_size: expected at least \d+.*got 10"):
        train_tokenizer(CAPTIONS, file, vocab_size=10)
    assert not file.exists()
