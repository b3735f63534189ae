"""Statistics written and read again, those of others, and those that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hqtvae_fast.evaluate import Extractor, Reference, measure, open_pictures, read_reference, write_reference
from hqtvae_fast.evaluate.reference import holds_statistics

from .conftest import Pooled, make_pixels, write_folder


@pytest.fixture
def reference(tmp_path: Path, extractor: Extractor) -> Reference:
    return Reference.of(measure(open_pictures(write_folder(tmp_path / "set", make_pixels(9))), extractor, keep=5))


def test_what_is_written_is_read(tmp_path: Path, reference: Reference):
    (tmp_path / "own.npz").write_bytes(write_reference(reference))
    found = read_reference(tmp_path / "own.npz")
    assert torch.equal(found.gaussian.mean, reference.gaussian.mean)
    assert torch.equal(found.gaussian.covariance, reference.gaussian.covariance)
    assert found.features is not None
    assert reference.features is not None
    assert torch.equal(found.features, reference.features)
    assert (found.gaussian.count, found.extractor, found.resolution) == (9, "pooled", 16)


def test_others_read_ours_by_the_usual_names(tmp_path: Path, reference: Reference):
    (tmp_path / "own.npz").write_bytes(write_reference(reference))
    with np.load(tmp_path / "own.npz") as file:
        np.testing.assert_array_equal(file["mu"], reference.gaussian.mean)
        np.testing.assert_array_equal(file["sigma"], reference.gaussian.covariance)


def test_the_usual_files_are_for_fids_network_alone(tmp_path: Path):
    np.savez(tmp_path / "usual.npz", mu=np.zeros(12, np.float32), sigma=np.eye(12))
    usual = read_reference(tmp_path / "usual.npz")
    assert (usual.extractor, usual.features, usual.gaussian.count) == (None, None, 0)
    fid = Extractor(Pooled(), "inception-v3 6726825d", torch.device("cpu"), is_fid=True)
    usual.check(fid, 12, "usual.npz")
    with pytest.raises(ValueError, match=r"usual\.npz: does not say which network"):
        usual.check(Extractor(Pooled(), "pooled", torch.device("cpu")), 12, "usual.npz")
    with pytest.raises(ValueError, match="2048 wide; these are 12 wide"):
        usual.check(fid, 2048, "usual.npz")


def test_features_of_another_network_are_refused(reference: Reference):
    with pytest.raises(ValueError, match="expected features of other; these are of pooled"):
        reference.check(Extractor(Pooled(), "other", torch.device("cpu")), 12, "own.npz")


def test_pictures_are_no_statistics(tmp_path: Path):
    np.savez(tmp_path / "pictures.npz", make_pixels(2))
    assert not holds_statistics(tmp_path / "pictures.npz")
    assert not holds_statistics(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"expected an \.npz with mu and sigma"):
        read_reference(tmp_path / "pictures.npz")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"expected a mean \[d\] and a covariance \[d, d\]"):
        read_reference(tmp_path / "odd.npz")
