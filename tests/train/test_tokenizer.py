"""A tokenizer trained on captions: the same every time, and as the text model's reader wants it."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from hqtvae_fast.text import PromptTokenizer
from hqtvae_fast.train.data import PLAIN
from hqtvae_fast.train.tokenizer import Vocabulary, train_tokenizer, vocabulary

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


# ---------------------------------------------------------------------------------------------------- vocabularies


class Captioned:
    """A source of captions alone."""

    def __init__(self, *captions: str) -> None:
        self.captions = captions

    def __len__(self) -> int:
        return len(self.captions)

    def fields(self, index: int) -> dict[str, str]:
        return {"caption": self.captions[index]}


@pytest.fixture(scope="module")
def fruit(tmp_path_factory) -> Vocabulary:
    source = Captioned("a red apple", "two blue pears", "one green plum", "abcdefghijklmnopqrstuvwxyz")
    return vocabulary(source, PLAIN, tmp_path_factory.mktemp("fruit") / "tokenizer.json", length=8)


@pytest.mark.parametrize("words,length", [(1, 8), (8, 8), (9, 16), (40, 40), (63, 64), (200, 64)])
def test_a_prefix_is_as_long_as_the_longest_caption(tmp_path, words, length):
    """In whole eights, and at most 64; as many tokens as the tokenizer has."""
    made = vocabulary(Captioned("cat", " ".join(["cat"] * words)), PLAIN, tmp_path / "tokenizer.json")
    assert made.length == length
    assert made.size == len(made.tokens()) == len({"[PAD]", "[UNK]", "\u2581", *"cat", "\u2581c", "at", "\u2581cat"})
    assert made.fields == {"prefix_vocab_size": made.size, "prefix_length": length}


def test_a_run_may_say_both(tmp_path):
    made = vocabulary(Captioned("a red apple"), PLAIN, tmp_path / "tokenizer.json", size=500, length=2)
    assert (made.size, made.length) == (500, 2)


def test_a_tokenizer_that_reads_all_captions_is_kept(fruit, tmp_path):
    made = vocabulary(Captioned("a blue plum", "red grapes"), PLAIN, tmp_path / "tokenizer.json", own=fruit)
    assert made.file.read_bytes() == fruit.file.read_bytes()
    assert made.fields == fruit.fields  # and not shorter


def test_it_is_kept_for_longer_captions_too(fruit, tmp_path):
    made = vocabulary(Captioned("a red apple and " * 4), PLAIN, tmp_path / "tokenizer.json", own=fruit)
    assert made.file.read_bytes() == fruit.file.read_bytes()
    assert made.length % 8 == 0
    assert fruit.length < made.length <= 64
    assert not PromptTokenizer(made.file, made.length, made.size).read(["a red apple and " * 4])[1]


@pytest.mark.parametrize("caption", ["a r\u00e9d apple", "vwxyz " * 40])
def test_a_tokenizer_that_loses_some_is_not(fruit, tmp_path, caption):
    """An unknown letter; more tokens than the longest prefix has, which a tokenizer of its own may need fewer of."""
    made = vocabulary(Captioned("a red apple", caption), PLAIN, tmp_path / "tokenizer.json", own=fruit)
    assert made.file.read_bytes() != fruit.file.read_bytes()
    assert not PromptTokenizer(made.file, made.length, made.size).read([caption])[1]


def test_captions_may_be_cut_where_the_run_says_so(fruit, tmp_path):
    made = vocabulary(Captioned("a red apple " * 9), PLAIN, tmp_path / "tokenizer.json", own=fruit, length=4)
    assert made.file.read_bytes() == fruit.file.read_bytes()
    assert made.length == 4


def test_a_vocabulary_that_was_made_stays(fruit, tmp_path):
    """Of a run that goes on: neither trained nor taken again."""
    source, file = Captioned("a r\u00e9d apple"), tmp_path / "tokenizer.json"
    first = vocabulary(source, PLAIN, file, own=fruit)
    before = file.stat().st_mtime_ns
    assert vocabulary(source, PLAIN, file, own=fruit) == first
    assert file.stat().st_mtime_ns == before
