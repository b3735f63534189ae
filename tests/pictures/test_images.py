"""Pictures in: every mode and size becomes the model's square RGB."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hqtvae_fast.pictures.images import enlarge, fit, grid, open_image, psnr, to_pil, to_rgb, to_tensor, with_caption


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_modes_become_rgb(mode, tmp_path):
    image = Image.new("RGB", (10, 8), (200, 30, 60)).convert(mode)
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).size == (10, 8)


def test_transparency_becomes_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_greys_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    opened = np.asarray(open_image(tmp_path / "grey.png"))[..., 0]
    np.testing.assert_array_equal(opened, ramp // 257)


def test_floats_are_refused():
    with pytest.raises(ValueError, match="got floating point"):
        to_rgb(Image.fromarray(np.zeros((4, 4), dtype=np.float32)))


def test_fit_takes_the_centre_square():
    array = np.zeros((40, 100, 3), dtype=np.uint8)
    array[:, 30:70] = 255
    fitted = fit(Image.fromarray(array), 20)
    assert fitted.size == (20, 20)
    assert np.asarray(fitted)[:, 1:-1].min() == 255  # the filter reaches over the cut, as resizing the whole would
    assert fit(Image.new("RGB", (1, 5000)), 16).size == (16, 16)
    same = Image.new("RGB", (16, 16))
    assert fit(same, 16) is same


def test_tensor_round_trip():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(array) for array in pixels]
    tensor = to_tensor(images, 8)
    assert tensor.shape == (2, 3, 8, 8)
    assert float(tensor.min()) >= -1
    assert float(tensor.max()) <= 1
    for image, back in zip(images, to_pil(tensor * 0.5 + 0.5), strict=True):
        assert image.tobytes() == back.tobytes()


def test_upright_as_the_camera_says(tmp_path):
    image, exif = Image.new("RGB", (10, 4)), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (4, 10)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n broken"])
def test_unreadable_files_are_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.png: not a readable picture"):
        open_image(tmp_path / "bad.png")
    with pytest.raises(ValueError, match="no such file"):
        open_image(tmp_path / "missing.png")


def test_grid_layout():
    images = [Image.new("RGB", (4, 4), (index, 0, 0)) for index in range(5)]
    sheet = grid(images, columns=3, gap=1)
    assert sheet.size == (3 * 5 - 1, 2 * 5 - 1)
    assert sheet.getpixel((5, 5)) == (4, 0, 0)
    assert sheet.getpixel((13, 8)) == (255, 255, 255)
    assert grid(images[:1]).size == (4, 4)
    with pytest.raises(ValueError, match="at least one"):
        grid([])


@pytest.mark.parametrize("text", ["", "cat", "a caption much longer than the picture is wide"])
def test_captions_stand_below_the_picture(text):
    image = Image.new("RGB", (64, 64), (10, 20, 30))
    shown = with_caption(image, text)
    assert shown.width == 64
    assert shown.height > 64
    assert shown.crop((0, 0, 64, 64)).tobytes() == image.tobytes()
    below = np.asarray(shown.crop((0, 64, 64, shown.height)))
    assert (below.min() < 128) == bool(text)


def test_enlarge():
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    assert enlarge(image, 3).size == (24, 24)
    assert enlarge(image, 1) is image


def test_psnr():
    left = torch.zeros(2, 3, 4, 4)
    right = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    assert float(psnr(left, right)[0]) == pytest.approx(20.0, abs=1e-4)
    assert bool(psnr(left, right)[1].isinf())
