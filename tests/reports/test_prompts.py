"""Prompts: what the model does not get to read is said, for every caller; and reading a long one takes no seconds."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.cli import main
from hqtvae_fast.text import PromptTokenizer
from hqtvae_fast.train import tokenizer as training
from hqtvae_fast.train.data import PLAIN
from hqtvae_fast.train.tokenizer import survey_captions, train_tokenizer

WORDS = "a small red apple on the table, flat"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    train_tokenizer([WORDS] * 3, file, vocab_size=200)
    return PromptTokenizer(file, 6, 200)


def told(tokenizer, prompts):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = tokenizer(prompts)
    return ids, [str(warning.message) for warning in caught]


def test_F6_what_fits_is_read_without_a_word(tokenizer):
    for prompt in ("red apple", "  Red\tAPPLE ", "", "table, flat", "ｒed apple"):
        assert told(tokenizer, [prompt])[1] == []


def test_F6_a_cut_prompt_names_what_was_cut(tokenizer):
    ids, messages = told(tokenizer, [f"{WORDS} red apple", "red"])
    assert ids.shape == (2, 6)
    assert messages == [
        "prompt: the model reads 6 tokens: of 'a small red apple on the table, flat red apple' the last 4 words were"
        " cut, from 'table, flat red apple' on"
    ]


def test_F6_unknown_words_are_named(tokenizer):
    _, messages = told(tokenizer, ["red 😀 apple", "🐉 猫", "red"])
    assert len(messages) == 1
    assert messages[0].startswith("prompt: the model does not know ")
    assert all(word in messages[0] for word in ("'😀'", "'🐉'", "'猫'", "in 2 of 3"))
    assert "red" not in messages[0]


def test_F6_characters_left_out_without_an_unknown_token_are_named(tmp_path):
    words = WordLevel({"[PAD]": 0, "red": 1, "<unk>": 2}, unk_token="<unk>")
    own = Tokenizer(words)
    own.pre_tokenizer = Whitespace()
    own.post_processor = TemplateProcessing(single="[PAD] $A", special_tokens=[("[PAD]", 0)])
    own.save(str(tmp_path / "tokenizer.json"))
    read = PromptTokenizer(tmp_path / "tokenizer.json", 4, 3)
    ids, messages = told(read, ["red blue red red red"])
    assert ids.tolist() == [[0, 1, 2, 1]]
    assert "'blue'" in messages[0]
    assert "the last 2 words were cut, from 'red red' on" in messages[0]


@pytest.mark.parametrize("text", ["red apple ", "a", "猫", "red,", " "])
def test_F6_a_long_prompt_is_read_as_its_beginning(tokenizer, text):
    long = text * (1_000_000 // len(text))
    began = time.perf_counter()
    ids, lost = tokenizer.read([long])
    assert time.perf_counter() - began < 3
    whole = tokenizer.tokenizer.encode(text * 20_000)
    assert ids[0].tolist() == whole.ids
    assert bool(lost.cut) == bool(text.strip())


def test_F6_text_after_many_spaces_is_not_lost(tokenizer):
    ids, lost = tokenizer.read([" " * 50_000 + "red apple"])
    assert torch.equal(ids, tokenizer.read(["red apple"])[0])
    assert not lost


def test_F6_a_broken_string_is_named(tokenizer):
    with pytest.raises(ValueError, match=r"^prompt: expected text; got .*caf.*, whose character 3 is none$"):
        tokenizer(["caf\udce9"])


class Captions:
    """A source of captions."""

    def __init__(self, captions):
        self.captions = captions

    def __len__(self):
        return len(self.captions)

    def fields(self, index):
        return {"caption": self.captions[index]}


def test_F6_a_training_sets_captions_are_counted_once(tokenizer, monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 7)
    source = Captions(["red apple"] * 20 + [WORDS] * 5 + ["red 猫"] * 3 + ["猫 🐉"])
    lost = survey_captions(source, PLAIN, tokenizer)
    assert (lost.texts, lost.cut, lost.with_unknown) == (29, 5, 4)
    assert lost.unknown == {"猫": 4, "🐉": 1}
    text = lost.describe("captions")
    assert "(and 4 more of 29)" in text
    assert "'猫', '🐉' in 4 of 29" in text


def test_F6_a_large_training_set_is_looked_at_in_part(tokenizer, monkeypatch):
    monkeypatch.setattr(training, "SURVEYED", 10)
    lost = survey_captions(Captions(["red apple"] * 500 + [WORDS] * 500), PLAIN, tokenizer)
    assert (lost.texts, lost.cut) == (10, 5)


def test_F6_the_pipeline_says_it():
    pipe = HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype="fp32")
    with pytest.warns(UserWarning, match="prompt: the model reads 16 tokens: .* does not know '🐉'"):
        pipe._tokens([f"🐉 {WORDS * 3}"])
    assert not told(pipe.tokenizer, ["tiger face, 3d", "red apple, flat"])[1]


def test_F6_the_command_says_it(tmp_path, capsys):
    assert main(["sample", "demo", "--prompt", "🐉 face", "--dtype", "fp32", "--out", str(tmp_path / "a.png")]) == 0
    assert "warning: prompt: the model does not know '🐉'" in capsys.readouterr().err


def test_F21_prompts_of_numpy(tokenizer, monkeypatch):
    from hqtvae_fast.guiding import read_texts

    for prompt in (np.str_("red"), np.array(["red"]), ("red",), ["red"]):
        read = read_texts("prompt", prompt)
        assert read == ["red"]
        assert type(read[0]) is str
    for prompt in (5, b"red", [b"red"], [], [None], ["red", 5]):
        with pytest.raises(ValueError, match=r"^prompt: expected a string or a list of strings; got "):
            read_texts("prompt", prompt)
