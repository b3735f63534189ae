"""What a run holds out of its own pictures, to tell how it does on others."""

from __future__ import annotations

import heapq

import numpy as np

from hqtvae_fast.train.data.facts import Facts
from hqtvae_fast.train.data.selection import Selection
from hqtvae_fast.train.data.sources import Source

SHARE, MOST = 10, 2048
"""One of so many pictures is held out, and at most so many in all: enough for means that a percent can be seen in."""
LEAST = 10  # pictures: a set of fewer is too small to give any away
LEAST_OF_CLASS = 5  # pictures of a class of which one may be given away
_CHOICE = 3  # first of the numbers that the choice is made from; orders of epochs have 1 there, chances of draws 2


def hold_out(source: Source, facts: Facts, seed: int) -> tuple[Source, Source | None]:
    """The pictures to train on and those held out, each in the source's order: a function of the set and the seed.

    Held out are a tenth of the pictures, at most 2,048, in proportion to the classes and at least one of each class
    that has 5 or more; of smaller classes none, as of pictures without the label that they are trained with. None is
    held out of fewer than ten. ``facts``: :func:`survey`'s, of this source; ValueError if of another.
    """
    if facts.pictures != len(source):
        raise ValueError(f"facts: expected those of {len(source)} pictures; got those of {facts.pictures}")
    held = np.zeros(len(source), dtype=bool)
    if len(source) >= LEAST:
        labels = np.zeros(len(source), dtype=np.int64) if facts.labels is None else facts.labels
        held[_chosen(labels, unlabelled=facts.condition != "class", seed=seed)] = True
    if not held.any():
        return source, None
    return Selection(source, np.flatnonzero(~held)), Selection(source, np.flatnonzero(held))


def _chosen(labels: np.ndarray, *, unlabelled: bool, seed: int) -> np.ndarray:
    """Places of the pictures held out. ``unlabelled``: label -1 is a class like others, and else none."""
    # RandomState, since NumPy promises its streams for ever: a run may go on under another version.
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((_CHOICE, seed))))
    order = random.permutation(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    enough = (sizes >= LEAST_OF_CLASS) & (unlabelled | (classes >= 0))
    large = random.permutation(np.flatnonzero(enough))[:MOST]  # of more classes than that, any
    number = min(MOST, max(len(large), int(sizes[enough].sum()) // SHARE))
    shares = _shares(sizes[large].tolist(), number)
    by_class = order[np.argsort(labels[order], kind="stable")]  # all of a class together, in random order
    starts = np.cumsum(sizes) - sizes
    parts = [by_class[starts[place] : starts[place] + share] for place, share in zip(large, shares, strict=True)]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _shares(sizes: list[int], number: int) -> list[int]:
    """``number`` shared out in proportion to ``sizes``, by the highest averages; at least one each."""
    shares = [1] * len(sizes)
    waiting = [(-size / 2, place) for place, size in enumerate(sizes)]
    heapq.heapify(waiting)
    for _ in range(number - len(sizes)):
        _, place = waiting[0]
        shares[place] += 1
        heapq.heapreplace(waiting, (-sizes[place] / (shares[place] + 1), place))
    return shares
