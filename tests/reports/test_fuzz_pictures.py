"""Thousands of damaged pictures: a picture or the opener's one error, in silence, in bounded time and memory."""

from __future__ import annotations

import io
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from hqtvae_fast.evaluate import open_pictures
from hqtvae_fast.pictures.files import PICTURE_FORMATS
from hqtvae_fast.pictures.images import BrokenPictureError, open_picture

FEW = 400
MANY = pytest.param(10_000, marks=pytest.mark.slow)
MAX_SECONDS = 5.0  # for one file of a few kilobytes, which takes a millisecond, on a busy machine
MAX_GROWTH = 2 << 30  # bytes: Pillow refuses more than 179 million pixels, three bytes each, before it makes room
SIZE = (32, 24)
EXIF_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")


def exif() -> Image.Exif:
    made = Image.Exif()
    made[ExifTags.Base.Orientation] = 6
    made[ExifTags.Base.XResolution] = 72.0
    made[ExifTags.Base.Make] = "maker"
    made[ExifTags.Base.DateTime] = "2020:01:01 00:00:00"
    made[ExifTags.Base.XPComment] = b"t\0i\0"
    made.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = (1, 60)
    made.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (1.0, 2.0, 3.0)
    return made


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def picture() -> Image.Image:
    return Image.radial_gradient("L").resize(SIZE).convert("RGB")


def sound_files() -> dict[str, bytes]:
    """A small picture in each format that can be written here, and once more with Exif where a format has it."""
    image = picture()
    kinds = [kind for kind in PICTURE_FORMATS if kind in Image.SAVE and kind != "PSD"]
    files = {kind: encoded(image, kind) for kind in kinds}
    files |= {f"{kind} with Exif": encoded(image, kind, exif=exif()) for kind in EXIF_FORMATS}
    files["GIF of two frames"] = encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)])
    files["compressed TIFF"] = encoded(image, "TIFF", compression="tiff_lzw")
    files["PNG with a palette"] = encoded(image.quantize(16), "PNG", transparency=3)
    return files


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Some bytes changed, taken out, or the rest cut off; more often near the beginning, where headers are."""
    found = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 8])):
        place = chance.randrange(min(len(found), chance.choice([60, 200, 600, 10**6])))
        kind = chance.random()
        if kind < 0.5:
            found[place] = chance.randrange(256)
        elif kind < 0.7:
            found[place : place + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"])
        elif kind < 0.85:
            del found[place : place + chance.randrange(1, 9)]
        else:
            del found[max(4, place) :]
        if len(found) < 6:
            break
    return bytes(found)


@pytest.fixture
def bounded() -> Iterator[None]:
    """Asserts that the process grows by no more than one picture can make it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_GROWTH


@pytest.fixture
def silent(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """Asserts that nothing is printed, by libraries in C neither, and that nothing is warned of."""
    yield
    assert tuple(capfd.readouterr()) == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


def opened(data: bytes, what: str) -> Image.Image | None:
    """The picture, or None on the one error that may come; a failure shows the bytes of any other."""
    began, found, message = time.process_time(), None, ""
    try:
        found = open_picture(data, "name.x").image
    except BrokenPictureError as error:
        message = str(error)
    except BaseException as error:
        pytest.fail(f"{what}: {type(error).__name__}: {error}: {data[:4000].hex()}")
    assert time.process_time() - began < MAX_SECONDS, f"{what}: {data[:4000].hex()}"
    assert found is not None or message.startswith("name.x: not a readable picture (")
    assert "\n" not in message
    return found


def open_damaged(files: dict[str, bytes], number: int, seed: int) -> None:
    chance, whole = random.Random(seed), 0
    assert all(opened(data, kind) is not None for kind, data in files.items())
    for _ in range(number):
        kind = chance.choice(list(files))
        found = opened(damaged(chance, files[kind]), kind)
        assert found is None or found.mode == "RGB"
        whole += found is not None
    assert 0.1 < whole / number < 0.9  # both happen


@pytest.mark.parametrize("number", [FEW, MANY])
def test_F4_damaged_files_are_pictures_or_broken(number: int, bounded: None, silent: None) -> None:
    open_damaged({kind: data for kind, data in sound_files().items() if "TIFF" not in kind}, number, seed=0)


@pytest.mark.parametrize("number", [FEW // 4, MANY])
def test_F4_damaged_tiffs_are_pictures_or_broken(number: int, bounded: None, recwarn: pytest.WarningsRecorder) -> None:
    """libtiff, in C, prints what it finds; Python says nothing."""
    open_damaged({kind: data for kind, data in sound_files().items() if "TIFF" in kind}, number, seed=1)
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("number", [FEW, MANY])
def test_F4_damaged_metadata_cost_no_picture(number: int, bounded: None, silent: None) -> None:
    chance, block = random.Random(2), exif().tobytes()
    sound = {kind: np.asarray(open_picture(encoded(picture(), kind, quality=95)).image) for kind in ("JPEG", "WEBP")}
    sound["PNG"] = np.asarray(picture())
    turned = 0
    for _ in range(number // len(sound)):
        data = bytearray(block)
        for _ in range(chance.choice([1, 2, 3])):
            data[chance.randrange(6, len(data))] = chance.choice([*range(13), 255, chance.randrange(256)])
        for kind, pixels in sound.items():
            found = opened(encoded(picture(), kind, quality=95, exif=bytes(data)), kind)
            assert found is not None, f"{kind}: {data.hex()}"
            upright = [np.asarray(found.transpose(turn)) for turn in Image.Transpose]
            assert any(np.array_equal(one, pixels) for one in (np.asarray(found), *upright)), f"{kind}: {data.hex()}"
            turned += found.size == SIZE[::-1]
    assert turned > number // 2  # an orientation that can be read is used


def metadata_spans(kind: str, data: bytes) -> list[range]:
    """Where a file that pixels do not depend on could be damaged: a PNG's other chunks, a TIFF's other tags."""
    if kind == "PNG":
        starts = [data.index(name) + 4 for name in (b"tEXt", b"zTXt", b"pHYs", b"eXIf")]
        lengths = [int.from_bytes(data[start - 8 : start - 4], "big") for start in starts]
        return [range(start, start + length + 4) for start, length in zip(starts, lengths, strict=True)]
    first = int.from_bytes(data[4:8], "little") + 2
    entries = range(first, first + 12 * int.from_bytes(data[first - 2 : first], "little"), 12)
    others = (ExifTags.Base.Make, ExifTags.Base.XResolution, ExifTags.Base.XPComment, ExifTags.Base.DateTime)
    return [range(at + 2, at + 12) for at in entries if int.from_bytes(data[at : at + 2], "little") in others]


@pytest.mark.parametrize("number", [FEW, MANY])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_F4_damaged_chunks_and_tags_cost_no_picture(kind: str, number: int, bounded: None, silent: None) -> None:
    notes = PngInfo()
    notes.add_text("Comment", "a red vase")
    notes.add_text("Long", "x" * 200, zip=True)
    options = {"pnginfo": notes, "dpi": (72, 72)} if kind == "PNG" else {}
    chance, data = random.Random(3), encoded(picture(), kind, exif=exif(), **options)
    upright = np.asarray(picture().transpose(Image.Transpose.ROTATE_270))
    spans, turned = metadata_spans(kind, data), 0
    for _ in range(number):
        wrong = bytearray(data)
        wrong[chance.choice(chance.choice(spans))] = chance.choice([*range(13), 255, chance.randrange(256)])
        found = opened(bytes(wrong), kind)
        assert found is not None, wrong.hex()
        assert np.array_equal(found, upright) or np.array_equal(found, picture()), wrong.hex()
        turned += found.size == SIZE[::-1]
    assert turned > number // 2


@pytest.mark.parametrize("number", [FEW // 2, MANY])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_F4_damaged_npz_files_are_whole_or_named(
    save: Callable[..., None], number: int, tmp_path: Path, bounded: None, silent: None
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    save(file := tmp_path / "set.npz", pixels)
    chance, data, whole = random.Random(4), file.read_bytes(), 0
    for _ in range(number):
        file.write_bytes(wrong := damaged(chance, data))
        try:
            for images, _ in open_pictures(file, 8).batches(2):
                assert images.shape[1:] == (3, 8, 8)
            whole += 1
        except ValueError as error:
            message = str(error)
            if not message.startswith(str(file)):
                pytest.fail(f"{message}: {wrong.hex()}")
        except BaseException as error:
            pytest.fail(f"{type(error).__name__}: {error}: {wrong.hex()}")
    assert 0 < whole < number
