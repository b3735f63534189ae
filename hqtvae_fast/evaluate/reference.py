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
import torch
from torch import Tensor

from hqtvae_fast.evaluate.extractors import Extractor
from hqtvae_fast.evaluate.frechet import Gaussian
from hqtvae_fast.evaluate.measure import SetState
from hqtvae_fast.evaluate.pictures import NPZ_PICTURES

MEAN, COVARIANCE = "mu", "sigma"


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
    """Whether a file is an .npz with a mean and a covariance."""
    return {MEAN, COVARIANCE} <= _arrays(path)


def holds_pictures(path: Path) -> bool:
    """Whether a file is an .npz of pictures, whatever else is in it."""
    return NPZ_PICTURES in _arrays(path)


def _arrays(path: Path) -> set[str]:
    """Names of an .npz file's arrays; none if it is no such file."""
    if path.suffix != ".npz" or not path.is_file() or not zipfile.is_zipfile(path):
        return set()
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_reference(path: Path) -> Reference:
    """ValueError if the file does not hold a mean [d] and a covariance [d, d]."""
    if not holds_statistics(path):
        raise ValueError(f"{path}: expected an .npz with {MEAN} and {COVARIANCE}")
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(file[name].astype(np.float64)) for name in (MEAN, COVARIANCE))
            gaussian = Gaussian(mean, covariance, int(_told(file, "count") or 0))
            found, resolution = _told(file, "extractor"), _told(file, "resolution")
            features = torch.from_numpy(file["features"]) if "features" in file else None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not what was written there ({error})") from error
    return Reference(gaussian, features, found, resolution)


def write_reference(reference: Reference) -> bytes:
    """The bytes of the file."""
    arrays: dict[str, Any] = {MEAN: reference.gaussian.mean.numpy(), COVARIANCE: reference.gaussian.covariance.numpy()}
    arrays["count"] = np.int64(reference.gaussian.count)
    if reference.extractor is not None:
        arrays["extractor"] = np.str_(reference.extractor)
    if reference.resolution is not None:
        arrays["resolution"] = np.int64(reference.resolution)
    if reference.features is not None:
        arrays["features"] = reference.features.numpy()
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def _told(file: Any, name: str) -> Any:
    return file[name].item() if name in file else None
