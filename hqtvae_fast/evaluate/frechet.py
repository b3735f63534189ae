"""Mean and covariance of features as they stream by, and the Fréchet distance between two such Gaussians.

A set's moments are a sum of its parts' moments (``+``), however it was cut: workers keep their own and add them at the
end. Sums of squares are taken about each part's mean, so that features far from zero lose no digits (Chan, Golub and
LeVeque's merging of parts), and in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.evaluate.arrays import require_covariance, require_finite


@dataclass(frozen=True)
class Gaussian:
    """``mean`` [d] and ``covariance`` [d, d], float64 on the CPU. ``count``: of how many pictures, 0 if unknown.

    ValueError, naming mu or sigma as in files of statistics, unless they are finite and sigma can be a covariance.
    """

    mean: Tensor
    covariance: Tensor
    count: int = 0

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if self.mean.ndim != 1 or self.covariance.shape != (d, d):
            got = f"{list(self.mean.shape)} and {list(self.covariance.shape)}"
            raise ValueError(f"mu, sigma: expected a mean [d] and a covariance [d, d]; got {got}")
        require_finite([("mu", self.mean), ("sigma", self.covariance)])
        require_covariance(self.covariance, "sigma")


@dataclass(frozen=True)
class Moments:
    """Of ``count`` features: their ``mean`` [d], and ``scatter`` [d, d], the sum of (x - mean)(x - mean)^T."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of one batch [N, d], N at least 1, in any dtype and on any device; the sums are made there."""
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"features: expected [N, d], N at least 1; got {list(features.shape)}")
        wide = features.detach().double()
        require_finite([("features", wide)])
        mean = wide.mean(dim=0)
        centred = wide - mean
        return cls(len(features), mean.cpu(), (centred.T @ centred).cpu())

    @classmethod
    def none(cls, width: int) -> Moments:
        """Of no features: what a sum begins with."""
        return cls(0, *(torch.zeros(shape, dtype=torch.float64, device="cpu") for shape in ((width,), (width, width))))

    def __add__(self, other: Moments) -> Moments:
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"expected features of one width; got {len(self.mean)} and {len(other.mean)}")
        count = self.count + other.count
        if count == 0:
            return self
        apart = other.mean - self.mean
        between = self.count * other.count / count
        mean = self.mean + apart * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between * torch.outer(apart, apart))

    def gaussian(self) -> Gaussian:
        """With the unbiased covariance. ValueError of fewer than 2 features."""
        if self.count < 2:
            raise ValueError(f"expected at least 2 pictures for a covariance; got {self.count}")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): on the features of FID's Inception this is FID.

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: no
    complex numbers arise, and covariances without full rank (fewer pictures than features) are no special case.
    Eigenvalues that rounding left below 0 count as 0. ValueError where the numbers are too large for their products.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"expected features of one width; got {len(one.mean)} and {len(other.mean)}")
    try:
        values, vectors = torch.linalg.eigh(_symmetric(one.covariance))
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        crossed = torch.linalg.eigvalsh(_symmetric(root @ other.covariance.double() @ root))
    except RuntimeError as error:
        raise ValueError(f"sigma: expected a covariance with eigenvalues; got none ({error})") from error
    shift = (one.mean.double() - other.mean.double()).square().sum()
    traces = one.covariance.double().trace() + other.covariance.double().trace()
    distance = float(shift + traces - 2 * crossed.clamp(min=0).sqrt().sum())
    if not math.isfinite(distance):
        raise ValueError(f"mu, sigma: expected numbers whose squares are finite; got a distance of {distance}")
    return max(0.0, distance)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix.double() + matrix.double().T) / 2
