"""What is known of the set that samples are held against, in an .npz file that later runs read in its pictures' place.

``mu`` and ``sigma`` are named as in the statistics files that FID implementations share, so either side reads the
other's. Ours say besides which network and resolution they are of (``extractor``, ``resolution``, ``count``), and may
hold ``features`` for precision and recall. ADM's reference batches hold both ``mu``, ``sigma`` and pictures.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hqtvae_fast.evaluate.arrays import ArrayFile, array_names, require_finite
from hqtvae_fast.evaluate.extractors import Extractor
from hqtvae_fast.evaluate.frechet import Gaussian
from hqtvae_fast.evaluate.pictures import NPZ_PICTURES
from hqtvae_fast.evaluate.set_state import SetState

MEAN, COVARIANCE, FEATURES = "mu", "sigma", "features"


@dataclass(frozen=True)
class Reference:
    """``extractor`` and ``resolution``: None where a file from elsewhere does not say. ``features``: [n, d] or None."""

    gaussian: Gaussian
    features: Tensor | None = None
    extractor: str | None = None
    resolution: int | None = None

    @classmethod
    def of(cls, state: SetState) -> Reference:
        features = state.features() if len(state.kept) else None
        return cls(state.moments.gaussian(), features, state.extractor, state.resolution)

    def check(self, extractor: Extractor, width: int, where: str) -> None:
        """ValueError unless these are features of this extractor, as far as the file says."""
        if self.extractor is not None and self.extractor != extractor.name:
            raise ValueError(f"{where}: expected features of {extractor.name}; these are of {self.extractor}")
        if len(self.gaussian.mean) != width:
            own = len(self.gaussian.mean)
            raise ValueError(f"{where}: expected features of {extractor.name}, {width} wide; these are {own} wide")
        if self.extractor is None and not extractor.is_fid:
            raise ValueError(
                f"{where}: does not say which network its features are of; expected that only with FID's Inception, got"
                f" {extractor.name}"
            )


def holds_statistics(path: Path) -> bool:
    """Whether a file is an .npz, whatever its name, with a mean and a covariance."""
    return {MEAN, COVARIANCE} <= array_names(path)


def holds_pictures(path: Path) -> bool:
    """Whether a file is an .npz of pictures, whatever else is in it."""
    return NPZ_PICTURES in array_names(path)


def read_reference(path: Path) -> Reference:
    """ValueError, naming file and array, unless it holds a mean [d] and a covariance [d, d], finite ones."""
    if not holds_statistics(path):
        raise ValueError(f"{path}: expected an .npz with {MEAN} and {COVARIANCE}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _parse(ArrayFile(archive), FEATURES in array_names(path))
    except Exception as error:  # a damaged archive or header makes zip, zlib and NumPy raise whatever comes
        raise ValueError(f"{path}: {error}") from error


def _parse(file: ArrayFile, has_features: bool) -> Reference:
    mean, covariance = file.numbers(MEAN, "d"), file.numbers(COVARIANCE, "d, d")
    features = file.numbers(FEATURES, "n, d").float() if has_features else None
    if features is not None:
        require_finite([(FEATURES, features)])  # as floats
        if features.shape[1] != len(mean) or len(features) == 0:
            raise ValueError(f"{FEATURES}: expected [n, {len(mean)}], n at least 1; got {list(features.shape)}")
    gaussian = Gaussian(mean, covariance, file.whole_number("count", 0) or 0)
    return Reference(gaussian, features, file.text("extractor"), file.whole_number("resolution", 1))


def write_reference(reference: Reference) -> bytes:
    """The bytes of the file."""
    arrays: dict[str, Any] = {MEAN: reference.gaussian.mean.numpy(), COVARIANCE: reference.gaussian.covariance.numpy()}
    arrays["count"] = np.int64(reference.gaussian.count)
    if reference.extractor is not None:
        arrays["extractor"] = np.str_(reference.extractor)
    if reference.resolution is not None:
        arrays["resolution"] = np.int64(reference.resolution)
    if reference.features is not None:
        arrays[FEATURES] = reference.features.numpy()
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()
