"""One rule for all that read pictures: sound pixels are a picture, anything else is named and left out, or ends it."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors import safe_open

from hqtvae_fast.classes import NO_CLASSES
from hqtvae_fast.cli import main
from hqtvae_fast.cli.drawings import plan
from hqtvae_fast.cli.pictures import Reader, find_pictures
from hqtvae_fast.evaluate import open_pictures
from hqtvae_fast.files import MAX_NAME_BYTES, json_text
from hqtvae_fast.pictures.images import BrokenPictureError, open_image, open_picture, to_rgb
from hqtvae_fast.train.data import PictureDataset, open_source

CHECKPOINT = Path(__file__).parents[1] / "golden" / "class_parallel"
DAMAGED_AVIF = Path(__file__).parent / "inputs" / "damaged.avif"
SIDE = 64
WIDE = (80, 64)  # width and height as stored; upright it is tall


def pixels(size: tuple[int, int] = (SIDE, SIDE), seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size)


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def damaged_exif() -> bytes:
    """A JPEG whose orientation, 6, can be read, and whose X resolution has a type that cannot be written again."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
    data = io.BytesIO()
    pixels(WIDE).save(data, "JPEG", quality=95)
    plain = data.getvalue()
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]


def upright() -> Image.Image:
    data = damaged_exif()
    with Image.open(io.BytesIO(data)) as file:
        return file.convert("RGB").transpose(Image.Transpose.ROTATE_270)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound picture, one with a damaged Exif, and one that is no picture."""
    (made := tmp_path / "pictures").mkdir()
    (made / "a.png").write_bytes(png(pixels()))
    (made / "b.jpg").write_bytes(damaged_exif())
    (made / "c.avif").write_bytes(DAMAGED_AVIF.read_bytes())
    return made


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_F4_damaged_exif_costs_no_picture(folder: Path) -> None:
    wanted = np.asarray(upright())
    assert wanted.shape == (80, 64, 3)
    assert np.array_equal(open_image(folder / "b.jpg"), wanted)
    assert np.array_equal(open_image(damaged_exif()), wanted)
    source = open_source(folder)
    training = PictureDataset(source, SIDE, training=False)[1]
    assert (training.key, training.broken) == ("b.jpg", ())
    judged = next(open_pictures(folder, SIDE).batches(1, range(1, 2))).images[0]
    assert torch.equal(training.image, judged.float() / 127.5 - 1)


@pytest.mark.parametrize("command", ["encode", "reconstruct", "pack"])
def test_F4_commands_leave_broken_pictures_out_and_name_them(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / {"encode": "codes.safetensors", "reconstruct": "sheet.png", "pack": "set.npz"}[command]
    model = [] if command == "pack" else [CHECKPOINT]
    assert run(command, *model, folder, "--out", out) == 2
    err = capsys.readouterr().err
    assert err.count("error:") == 1
    assert f"{folder}{': ' if command == 'pack' else '/'}c.avif: not a readable picture" in err
    if command == "pack":
        with np.load(out) as packed:
            assert packed["arr_0"].shape == (2, SIDE, SIDE, 3)
    elif command == "encode":
        assert names_in(out) == ["a.png", "b.jpg"]
    else:
        assert Image.open(out).size == (2 * 192 + 2, 2 * (192 + 24) + 2)  # enlarged, each above its caption


def names_in(codes: Path) -> list[str]:
    with safe_open(codes, framework="np") as file:
        return [Path(name).name for name in json.loads(file.metadata()["names"])]


@pytest.mark.parametrize("form", ["set.npz", "set.tar", "set"])
def test_F4_pack_keeps_the_order_of_what_it_can_read(form: str, folder: Path, tmp_path: Path) -> None:
    (folder / "0.png").write_bytes(b"nothing")
    assert run("pack", folder, "--out", tmp_path / form) == 2
    images = torch.cat([batch.images for batch in open_pictures(tmp_path / form).batches(4)])
    assert np.array_equal(images[0].permute(1, 2, 0), pixels())
    assert len(images) == 2


def test_F4_shards_and_training_leave_broken_pictures_out(folder: Path, tmp_path: Path) -> None:
    assert run("encode", CHECKPOINT, folder, "--shards", tmp_path / "codes") == 0
    assert json.loads((tmp_path / "codes/codes-000000.broken.json").read_text()) == ["c.avif"]
    sample = PictureDataset(open_source(folder), SIDE, training=False)[2]
    assert (sample.key, sample.broken) == ("a.png", ("c.avif",))


@pytest.mark.parametrize("workers", [0, 1])
def test_F4_a_measurement_stops_and_names_the_picture(folder: Path, workers: int) -> None:
    pictures = open_pictures(folder, SIDE)
    with pytest.raises(BrokenPictureError, match=r"^\S+/pictures: c\.avif: not a readable picture \(.*\)$"):
        list(pictures.batches(2, workers=workers))


@pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="this Pillow reads no AVIF")
def test_F4_damaged_avif_is_a_broken_picture() -> None:
    with pytest.raises(BrokenPictureError, match=r"damaged\.avif: not a readable picture"):
        open_image(DAMAGED_AVIF)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a\nb"), NotImplementedError(), MemoryError(), KeyError(3), struct.error("x"), RecursionError()],
    ids=lambda error: type(error).__name__,
)
def test_F4_whatever_a_decoder_raises_is_a_broken_picture(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(self: object) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    (tmp_path / "a.png").write_bytes(png(pixels()))
    for opening in (lambda: open_image(tmp_path / "a.png"), lambda: open_image(png(pixels()), "a.png")):
        with pytest.raises(BrokenPictureError, match=r"a\.png: not a readable picture \(.+\)$"):
            opening()


def test_F4_a_header_that_asks_for_too_much_is_broken_at_once() -> None:
    data = bytearray(png(pixels()))
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(BrokenPictureError, match=r"decompression bomb"):
        open_image(bytes(data), "a.png")


def test_F4_a_reader_opens_each_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(folder / "grey.png")
    opened: list[str] = []
    own = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: opened.append(str(file)) or own(file, **options))
    picture = Reader(SIDE).read(folder / "grey.png")
    assert opened == [str(folder / "grey.png")]
    assert picture.changes == ("L converted to RGB",)


def grey16(values: np.ndarray, clear: int | None = None, depth: int = 16, colours: int = 0) -> bytes:
    """A PNG of bytes as they are stored, ``depth`` bits a sample, with a transparent colour if ``clear`` is given."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, stored = values.shape
    width = stored * 8 // depth // {0: 1, 2: 3}[colours]
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    trns = b"" if clear is None else chunk(b"tRNS", struct.pack(">H", clear) * {0: 1, 2: 3}[colours])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + trns + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


RAMP = np.round(np.linspace(0, 65535, 64)).astype(np.uint16)


def test_F20_a_transparent_grey_of_16_bits_is_white() -> None:
    wide = RAMP.reshape(8, 8).astype(">u2").view(np.uint8)
    plain = np.asarray(open_image(grey16(wide)))[..., 0]
    np.testing.assert_array_equal(plain, RAMP.reshape(8, 8) // 257)
    clear = np.asarray(open_image(grey16(wide, clear=int(RAMP[5]))))[..., 0]
    assert clear[0, 5] == 255
    np.testing.assert_array_equal(np.delete(clear.ravel(), 5), np.delete(plain.ravel(), 5))


@pytest.mark.parametrize(
    "depth, stored, clear, wanted",
    [(1, [0b01000000], 1, [0, 255] + [0] * 6), (2, [0b00011011], 1, [0, 255, 170, 255]), (4, [0x5F], 5, [255, 255])],
)
def test_F20_a_transparent_grey_of_few_bits_is_white(depth: int, stored: list[int], clear: int, wanted: list[int]):
    data = grey16(np.array([stored], np.uint8), clear, depth)
    assert np.asarray(open_image(data))[0, :, 0].tolist() == wanted


def test_F20_a_transparent_colour_of_16_bits_is_white() -> None:
    stored = np.array([[40_000] * 3 + [0, 65535, 0]], ">u2").view(np.uint8)
    assert np.asarray(open_image(grey16(stored, 40_000, colours=2))).tolist() == [[[255] * 3, [0, 255, 0]]]


@pytest.mark.parametrize("bits, scale", [(8, 257), (16, 1), (31, 1 / 32768.5)])
def test_F20_greys_of_32_bits_take_the_range_that_they_use(bits: int, scale: float, tmp_path: Path) -> None:
    values = np.floor(RAMP / scale).astype(np.int32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "grey.tif")
    found = np.asarray(open_image(tmp_path / "grey.tif"))[..., 0]
    np.testing.assert_allclose(found, RAMP.reshape(8, 8) // 257, atol=1)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(values)), open_image(tmp_path / "grey.tif"))


def test_F20_a_dark_ppm_stays_dark(tmp_path: Path) -> None:
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">2H", 3, 200))
    assert np.asarray(open_image(tmp_path / "dark.pgm")).max() == 0
    assert open_picture(tmp_path / "dark.pgm").mode == "I"


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder with a picture whose name is no UTF-8."""
    (made := tmp_path / "strange").mkdir()
    try:
        (made / os.fsdecode(b"caf\xe9.png")).write_bytes(png(pixels()))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    return made


def test_F11_codes_of_a_strangely_named_picture_are_written(strange: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes.safetensors"
    assert run("encode", CHECKPOINT, strange, "--out", codes) == 0
    assert names_in(codes) == ["caf\\xe9.png"]
    assert run("decode", CHECKPOINT, codes, "--out-dir", tmp_path / "out") == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["caf\\xe9.png"]


def test_F11_shards_of_a_strangely_named_picture_are_written(strange: Path, tmp_path: Path) -> None:
    (strange / os.fsdecode(b"broken\xff.png")).write_bytes(b"nothing")
    assert run("encode", CHECKPOINT, strange, "--shards", tmp_path / "codes") == 0
    assert json.loads((tmp_path / "codes/codes-000000.broken.json").read_bytes()) == ["broken\\xff.png"]
    with tarfile.open(tmp_path / "codes/codes-000000.tar") as tar:
        fields = json.loads(tar.extractfile("000000001.json").read())  # type: ignore[union-attr]
    assert fields["key"] == "caf\\xe9.png"


def test_F11_any_text_becomes_json_that_others_read() -> None:
    value = {"caf\udce9": ['"\\\ud83d', "鯨", 1.5]}
    data = json_text(value, indent=1).encode()
    assert json.loads(data) == {"caf\\xe9": ['"\\\\ud83d', "鯨", 1.5]}


LONG = "鯨" * 82  # 246 bytes: a file name with .png, but not with more


def test_F17_long_names_are_cut_in_bytes_and_stay_apart(tmp_path: Path) -> None:
    (folder := tmp_path / "pictures").mkdir()
    for sub in ("a", "b"):
        (folder / sub).mkdir()
        (folder / sub / f"{LONG}.png").write_bytes(png(pixels()))
    codes = tmp_path / "codes.safetensors"
    assert run("encode", CHECKPOINT, folder, "--out", codes) == 0
    assert run("decode", CHECKPOINT, codes, "--out-dir", tmp_path / "out") == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert len(names) == 2
    assert all(name.startswith("鯨" * 70) and name.endswith(".png") for name in names)


def test_F17_names_of_prompts_are_cut_in_bytes_and_stay_apart() -> None:
    prompts = ["鯨" * 200, "鯨" * 201, "a" * 200]
    names = [drawing.name for drawing in plan(None, prompts, None, 2, 0, NO_CLASSES)]
    assert len(set(names)) == 6
    assert max(len(f"{name}.webp".encode()) for name in names) <= MAX_NAME_BYTES
    assert names[4:] == ["a" * 48 + "-0000", "a" * 48 + "-0001"]


def test_F19_the_key_in_code_shards_is_the_sources(tmp_path: Path) -> None:
    about = json.dumps({"key": "000000000", "caption": "cat", "label": 3}).encode()
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, data in (("000000000.png", png(pixels())), ("000000000.json", about)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert run("encode", CHECKPOINT, tmp_path / "00000.tar", "--shards", tmp_path / "codes") == 0
    with tarfile.open(tmp_path / "codes/codes-000000.tar") as tar:
        fields = json.loads(tar.extractfile("000000000.json").read())  # type: ignore[union-attr]
    assert fields == {"key": "00000.tar/000000000", "caption": "cat", "label": 3}


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe has a name on POSIX")
def test_F4_a_pipe_named_like_a_picture_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    assert [file.name for file in find_pictures([folder])] == ["a.png", "b.jpg", "c.avif"]
