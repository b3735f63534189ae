"""Precision and recall against every distance written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.evaluate import precision_recall


def brute_force(references: np.ndarray, samples: np.ndarray, k: int) -> tuple[float, float]:
    """By the definition: a loop over all pairs."""

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return float(((x - y) ** 2).sum())

    def share_inside(points: np.ndarray, centres: np.ndarray) -> float:
        radii = []
        for i, centre in enumerate(centres):
            radii.append(sorted(distance(centre, other) for j, other in enumerate(centres) if j != i)[k - 1])
        inside = [any(distance(x, c) <= r for c, r in zip(centres, radii, strict=True)) for x in points]
        return float(np.mean(inside))

    return share_inside(samples, references), share_inside(references, samples)


@given(
    sizes=st.tuples(st.integers(5, 14), st.integers(5, 14)),
    k=st.integers(1, 4),
    block=st.sampled_from([1, 3, 7, 100]),
    offset=st.sampled_from([0, 1000]),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_the_same_as_brute_force_for_any_block(sizes, k, block, offset, seed):
    # Small integers: distances are exact, and many are equal, so that points lie on the balls' surfaces.
    rng = np.random.default_rng(seed)
    references, samples = (rng.integers(-2, 3, (size, 3)).astype(np.float64) + offset for size in sizes)
    found = precision_recall(torch.from_numpy(references), torch.from_numpy(samples), k, block)
    assert found == pytest.approx(brute_force(references, samples, k))


def test_real_features_in_float32():
    rng = np.random.default_rng(5)
    references = rng.normal(size=(60, 6)).astype(np.float32)
    samples = (1.2 * rng.normal(size=(50, 6)) + 0.5).astype(np.float32)
    found = precision_recall(torch.from_numpy(references), torch.from_numpy(samples), 3, 16)
    wanted = brute_force(references.astype(np.float64), samples.astype(np.float64), 3)
    assert found == pytest.approx(wanted)
    assert 0 < found.precision < 1


def test_a_set_against_itself_and_against_one_far_away():
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    assert precision_recall(features, features) == (1, 1)
    assert precision_recall(features, features + 1000) == (0, 0)


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match="got 3 references and 9 samples"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2), k=3)
    with pytest.raises(ValueError, match=r"expected features \[M, d\] and \[N, d\]"):
        precision_recall(torch.zeros(9, 2), torch.zeros(9, 3))
