"""The same pictures from a folder, a shard and an .npz; captions; what is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hqtvae_fast.cli.sheets import png, webp
from hqtvae_fast.evaluate import open_pictures
from hqtvae_fast.evaluate.pictures import Pictures
from hqtvae_fast.pictures.images import fit, to_pil

from .conftest import SIDE, make_pixels, write_folder, write_shard


def everything(pictures: Pictures, size: int = 4, span: range | None = None) -> torch.Tensor:
    batches = list(pictures.batches(size, span))
    first = 0 if span is None else span.start
    assert [index for batch in batches for index in batch.indices] == list(
        range(first, first + sum(len(batch.images) for batch in batches))
    )
    return torch.cat([batch.images for batch in batches])


@pytest.fixture(params=["folder", "shard", "npz", "compressed npz"])
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Pictures:
    pixels = make_pixels(11)
    if request.param == "folder":
        return open_pictures(write_folder(tmp_path / "set", pixels))
    if request.param == "shard":
        return open_pictures(write_shard(tmp_path / "set.tar", pixels, ["x"] * 11))
    file = tmp_path / "set.npz"
    (np.savez if request.param == "npz" else np.savez_compressed)(file, pixels)
    return open_pictures(file)


def test_every_form_gives_the_same_pixels(pictures: Pictures):
    assert (len(pictures), pictures.resolution) == (11, SIDE)
    found = everything(pictures)
    assert found.dtype is torch.uint8
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1), make_pixels(11))


def test_a_part_is_read_alone(pictures: Pictures):
    np.testing.assert_array_equal(everything(pictures, 3, range(4, 9)).permute(0, 2, 3, 1), make_pixels(11)[4:9])


def test_pictures_are_fitted_alike_from_files_and_npz(tmp_path: Path):
    pixels = make_pixels(3)[:, :, :12]  # 16 high, 12 wide
    np.savez(tmp_path / "set.npz", pixels)
    folder = write_folder(tmp_path / "set", pixels)
    from_npz, from_files = (everything(open_pictures(path, 8)) for path in (tmp_path / "set.npz", folder))
    assert torch.equal(from_npz, from_files)
    wanted = np.asarray(fit(to_pil(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)[1], 8))
    np.testing.assert_array_equal(from_npz[1].permute(1, 2, 0), wanted)


def test_captions_come_from_the_shard_or_from_the_file(tmp_path: Path):
    pixels = make_pixels(2)
    shard = open_pictures(write_shard(tmp_path / "set.tar", pixels, ["a cube", "a ball"]))
    assert [shard.caption(0), shard.caption(1)] == ["a cube", "a ball"]
    image = to_pil(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)[0]
    folder = tmp_path / "drawn"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(image, '{"prompt": "a red vase", "seed": 3}'))
    (folder / "b.png").write_bytes(png(image))
    (folder / "c.webp").write_bytes(webp(image, '{"prompt": "a white vase"}'))
    drawn = open_pictures(folder)
    assert (drawn.caption(0), drawn.caption(2)) == ("a red vase", "a white vase")
    with pytest.raises(ValueError, match=r"b\.png: expected a caption"):
        drawn.caption(1)


def test_a_broken_picture_is_named(tmp_path: Path):
    folder = write_folder(tmp_path / "set", make_pixels(3))
    file = folder / "00001.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"00001\.png: not a readable picture"):
        everything(open_pictures(folder))


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"expected uint8 \[N, H, W, 3\]; got uint8 \[2, 3, 4, 4\]"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, r"got float32 \[2, 4, 4, 3\]"),
        ({"labels": np.zeros(2)}, "expected an array arr_0; it holds labels"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_pictures(tmp_path / "set.npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path):
    (tmp_path / "set.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        open_pictures(tmp_path / "set.npz")
    with pytest.raises(ValueError, match="no such file"):
        open_pictures(tmp_path / "none.npz")
