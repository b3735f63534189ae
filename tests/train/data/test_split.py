"""What is held out of a set: a tenth, spread over its classes, and the same each time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_sets import picture, write_folder

from hqtvae_fast.train.data import PLAIN, Facts, PictureDataset, Selection, hold_out, open_source, survey, whole_of
from hqtvae_fast.train.data.split import MOST
from hqtvae_fast.train.validation import HeldOut


class Numbered:
    """A source of so many pictures that are their own numbers, with labels or without."""

    def __init__(self, pictures, labels=None):
        self.pictures, self.labels = pictures, labels

    def __len__(self):
        return self.pictures

    def key(self, index):
        return str(index)

    def fields(self, index):
        return {} if self.labels is None or self.labels[index] < 0 else {"label": int(self.labels[index])}

    def fingerprint(self):
        return "x" * 16


def split_of(pictures, labels=None, seed=0):
    """The places of what is trained on, and of what is held out."""
    source = Numbered(pictures, labels)
    training, held_out = hold_out(source, survey(source, PLAIN), seed)
    return [
        [] if part is None else [int(part.key(index)) for index in range(len(part))] for part in (training, held_out)
    ]


def held_of(labels, seed=0):
    """How many of each class are held out."""
    return Counter(labels[index] for index in split_of(len(labels), labels, seed)[1])


@pytest.mark.parametrize("pictures, held", [(1, 0), (9, 0), (10, 1), (19, 1), (60, 6), (20_479, 2047), (50_000, MOST)])
def test_a_tenth_and_not_too_many(pictures, held):
    training, held_out = split_of(pictures)
    assert (len(training), len(held_out)) == (pictures - held, held)
    assert sorted(training + held_out) == list(range(pictures))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(0, 2**40))
@example([5, 23], 0)  # one of the five is forced, and the 23 give 1 for their 2.3
def test_spread_over_classes(sizes, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).tolist()
    if len(labels) < 10:
        assert not held_of(labels, seed)
        return
    held = held_of(labels, seed)
    large = {label: size for label, size in enumerate(sizes) if size >= 5}
    assert held.keys() == large.keys()
    assert sum(held.values()) == max(len(large), sum(large.values()) // 10)
    forced = sum(max(0.0, 1 - size / 10) for size in large.values())  # one of each, though a tenth of it is less
    bound = 1 + max(len(large) / 10, forced) + 1e-9
    assert all(abs(count - large[label] / 10) <= bound for label, count in held.items())
    training, _ = split_of(len(labels), labels, seed)
    assert {labels[index] for index in training} == set(labels)  # no class is lost


def test_proportional_to_the_classes():
    assert held_of([0] * 300 + [1] * 100 + [2] * 20) == {0: 30, 1: 10, 2: 2}


def test_more_classes_than_may_be_held_out():
    held = held_of(np.repeat(np.arange(3000), 5).tolist())
    assert len(held) == sum(held.values()) == MOST
    assert max(held) > 2500  # not the first ones


def test_pictures_without_the_label_stay_out():
    """They would be replaced, as broken, by others."""
    assert held_of([-1] * 20 + [0] * 40) == {0: 4}


def test_the_same_each_time_and_another_by_seed():
    first = split_of(200)
    np.random.default_rng(3).random(7)
    np.random.random(7)
    assert split_of(200) == first != split_of(200, seed=1)
    assert first[0] == sorted(first[0])


def test_the_same_for_ever():
    """A run that goes on under another version of NumPy must not train on what it held out."""
    assert split_of(40)[1] == [9, 25, 28, 37]
    assert split_of(40, [0, 1] * 20, seed=5)[1] == [13, 18, 26, 37]


def test_of_a_selection_and_through_a_dataset(tmp_path):
    files = {f"{name}/{index}.png": picture(index) for name in ("bad", "cat", "dog") for index in range(12)}
    whole = open_source(write_folder(tmp_path, files))
    source = Selection(whole, range(12, 36))
    facts = survey(source, PLAIN)
    training, held_out = hold_out(source, facts, 0)
    assert whole_of(training) is whole_of(held_out) is whole
    assert (len(training), len(held_out)) == (22, 2)
    assert survey(training, PLAIN).classes == facts.classes == (None, "cat", "dog")
    dataset = PictureDataset(held_out, 8, training=False, condition="class", num_classes=3)
    batches = list(HeldOut(dataset, limit=10, batch_size=1, workers=2))
    assert [batch.keys[0] for batch in batches] == [held_out.key(0), held_out.key(1)]
    assert [batch.labels.item() for batch in batches] == [1, 2]


def test_facts_of_another_set(tmp_path):
    facts = Facts(pictures=3, condition="none", fingerprint="", caption="")
    with pytest.raises(ValueError, match="facts: expected those of 12 pictures; got those of 3"):
        hold_out(Numbered(12), facts, 0)
