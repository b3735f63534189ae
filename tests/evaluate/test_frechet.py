"""Moments and the Fréchet distance against closed forms, NumPy, SciPy and torchmetrics."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hqtvae_fast.evaluate import Gaussian, Moments, frechet_distance


def features(count: int, width: int, seed: int, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + offset


@given(
    cuts=st.lists(st.integers(1, 59), max_size=6, unique=True),
    offset=st.sampled_from([0.0, 1.0, -3e4, 1e7]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_moments_of_parts_add_up_to_those_of_the_whole(cuts: list[int], offset: float, seed: int):
    whole = features(60, 5, seed, offset)
    parts = torch.tensor_split(whole, sorted(cuts))
    total = reduce(add, (Moments.of(part) for part in parts), Moments.none(5))
    assert total.count == 60
    np.testing.assert_allclose(total.mean, whole.numpy().mean(axis=0), rtol=1e-12)
    # What is left of 16 digits when the offset's are used up; sums of plain squares would keep none at 1e7.
    tolerance = 1e-10 + 1e-13 * abs(offset)
    covariance = np.cov(whole.numpy(), rowvar=False)
    np.testing.assert_allclose(total.gaussian().covariance, covariance, rtol=tolerance, atol=tolerance)


def test_distance_of_commuting_gaussians_is_the_closed_form():
    mean_1, mean_2 = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    one, other = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 4.0, 1.0])
    wanted = 1 + 4 + float((one.sqrt() - other.sqrt()).square().sum())
    found = frechet_distance(Gaussian(mean_1, one.diag()), Gaussian(mean_2, other.diag()))
    assert found == pytest.approx(wanted, rel=1e-12)


def test_distance_of_a_gaussian_to_itself_is_zero():
    own = Moments.of(features(300, 24, 0)).gaussian()
    assert frechet_distance(own, own) == pytest.approx(0, abs=1e-9 * float(own.covariance.trace()))


@pytest.mark.parametrize("count", [200, 12], ids=["full rank", "fewer pictures than features"])
def test_distance_against_scipy(count: int):
    one, other = (Moments.of(features(count, 20, seed)).gaussian() for seed in (1, 2))
    root = scipy.linalg.sqrtm((one.covariance @ other.covariance).numpy()).real
    shift = float((one.mean - other.mean).square().sum())
    wanted = shift + float(one.covariance.trace() + other.covariance.trace()) - 2 * np.trace(root)
    # Without full rank SciPy's root is the worse of the two: it is good to the root of float64's rounding.
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-9 if count > 20 else 1e-5)


class Flat(nn.Module):
    """What torchmetrics takes in Inception's place."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1) / 255


def test_distance_against_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    generator = torch.Generator().manual_seed(3)
    sets = [torch.randint(0, high, (80, 3, 16, 16), generator=generator, dtype=torch.uint8) for high in (256, 200)]
    metric = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 16, 16)).set_dtype(torch.float64)
    for images, real in zip(sets, (True, False), strict=True):
        metric.update(images, real=real)
    one, other = (Moments.of(Flat()(images)).gaussian() for images in sets)
    assert frechet_distance(one, other) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_what_is_no_set_of_features_is_refused():
    with pytest.raises(ValueError, match=r"expected \[N, d\].*got \[4\]"):
        Moments.of(torch.zeros(4))
    with pytest.raises(ValueError, match="expected finite values"):
        Moments.of(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="expected at least 2 pictures for a covariance; got 1"):
        Moments.of(torch.zeros(1, 3)).gaussian()
    with pytest.raises(ValueError, match="one width; got 3 and 4"):
        Moments.none(3) + Moments.none(4)
