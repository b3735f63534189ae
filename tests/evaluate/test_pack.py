"""What is packed reads back as it was, and others' readers read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hqtvae_fast.evaluate import open_pictures

from .conftest import make_pixels, write_folder, write_shard


@pytest.mark.parametrize("form", ["set.npz", "set.tar", "set"])
def test_what_is_packed_reads_back(run, tmp_path: Path, form: str):
    pixels = make_pixels(70)  # more than a batch
    folder = write_folder(tmp_path / "pictures", pixels)
    found = run("pack", folder, "--out", tmp_path / "packed" / form)
    assert found.code == 0, found.err
    assert "70 pictures of 16 pixels" in found.out
    images = torch.cat([batch.images for batch in open_pictures(tmp_path / "packed" / form).batches(32)])
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), pixels)


def test_numpy_reads_the_npz_as_adms_evaluator_does(run, tmp_path: Path):
    folder = write_folder(tmp_path / "pictures", make_pixels(5))
    for name in ("one.npz", "two.npz"):
        assert run("pack", folder, "--out", tmp_path / name).code == 0
    with np.load(tmp_path / "one.npz") as file:
        assert file.files == ["arr_0"]
        np.testing.assert_array_equal(file["arr_0"], make_pixels(5))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_captions_go_along(run, tmp_path: Path):
    shard = write_shard(tmp_path / "set.tar", make_pixels(2), ["a cube", "a ball"])
    assert run("pack", shard, "--out", tmp_path / "again.tar").code == 0
    again = open_pictures(tmp_path / "again.tar")
    assert [again.caption(0), again.caption(1)] == ["a cube", "a ball"]


def test_a_folder_that_holds_something_is_left_alone(run, tmp_path: Path):
    folder = write_folder(tmp_path / "pictures", make_pixels(2))
    found = run("pack", folder, "--out", folder)
    assert found.code == 2
    assert "expected a new or empty folder" in found.err
    assert len(list(folder.iterdir())) == 2


def test_a_broken_set_leaves_no_file(run, tmp_path: Path):
    folder = write_folder(tmp_path / "pictures", make_pixels(3))
    for file in folder.iterdir():
        file.write_bytes(b"nothing")
    found = run("pack", folder, "--out", tmp_path / "set.npz", "--resolution", 16)
    assert found.code == 2
    assert "none can be read" in found.err
    assert "00000.png: not a readable picture" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
