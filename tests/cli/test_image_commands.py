"""``hqtvae reconstruct``, ``encode`` and ``decode``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_pipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .conftest import RESOLUTION, Run, assert_one_line_error, pixels, sheet_size

CLASSES = GOLDEN / "class_parallel"
CAPTION = 13  # pixels below a picture of 64
ONE = (RESOLUTION, RESOLUTION)
FP32 = ("--dtype", "fp32")


def captioned_size(columns: int, rows: int) -> tuple[int, int]:
    return columns * (RESOLUTION + 2) - 2, rows * (RESOLUTION + CAPTION + 2) - 2


def test_reconstruct_shows_original_and_reconstruction(run: Run, photos: Path, tmp_path: Path) -> None:
    result = run("reconstruct", CLASSES, photos / "exact.png", *FP32, "--scale", "1")
    assert result.code == 0
    assert result.err == ""
    assert "PSNR, dB" in result.out
    assert "mean of 1" in result.out
    sheet = pixels(tmp_path / "reconstruct.png", captioned_size(2, 1))[:RESOLUTION]
    assert np.array_equal(sheet[:, :RESOLUTION], pixels(photos / "exact.png"))
    psnr = -10 * np.log10((((sheet[:, :RESOLUTION] - sheet[:, RESOLUTION + 2 :]) / 255) ** 2).mean())
    shown = next(line.split() for line in result.out.splitlines() if "mean of 1" in line)
    assert float(shown[-1]) == pytest.approx(psnr, abs=0.05)


def test_reconstruct_fits_converts_and_says_so(run: Run, photos: Path, tmp_path: Path) -> None:
    result = run("reconstruct", CLASSES, photos.name, "--out", "sheet.png", "--batch-size", "3", "--scale", "1")
    assert result.code == 0
    pixels(tmp_path / "sheet.png", captioned_size(2, 4))
    assert "96x80 resized and centre-cropped" in result.out
    assert "L converted to RGB" in result.out
    assert "RGBA converted to RGB" in result.out
    assert "note: 3 pictures resized and centre-cropped to 64x64" in result.err
    assert "note: 2 pictures converted to RGB" in result.err


@pytest.mark.parametrize("case, levels", [("class_parallel", 2), ("class_level3", 3), ("stage1_avgpool", 2)])
def test_reconstruct_level_by_level(run: Run, photos: Path, tmp_path: Path, case: str, levels: int) -> None:
    assert run("reconstruct", GOLDEN / case, photos / "exact.png", "--levels", "--scale", "1").code == 0
    sheet = pixels(tmp_path / "reconstruct.png", captioned_size(2 + levels, 1))[:RESOLUTION]
    parts = [sheet[:, start : start + RESOLUTION] for start in range(0, sheet.shape[1], RESOLUTION + 2)]
    assert not any(np.array_equal(parts[1], part) for part in parts[2:])


def test_round_trip_is_reconstruction(run: Run, photos: Path, tmp_path: Path) -> None:
    names = ["exact.png", "gray.png", "wide.jpg"]
    files, batch = [photos / name for name in names], ("--batch-size", "2")
    assert run("reconstruct", CLASSES, *files, *FP32, *batch, "--scale", "1").code == 0
    encoded = run("encode", CLASSES, *files, *batch)
    assert encoded.code == 0
    assert "wrote codes.safetensors (codes of 3 pictures: 4x4, 8x8)" in encoded.out
    assert run("decode", CLASSES, "codes.safetensors", "--out-dir", tmp_path / "decoded", *FP32, *batch).code == 0
    sheet = pixels(tmp_path / "reconstruct.png", captioned_size(2, 3))
    for row, name in enumerate(("exact", "gray", "wide")):
        top = row * (RESOLUTION + CAPTION + 2)
        reconstruction = sheet[top : top + RESOLUTION, RESOLUTION + 2 :]
        assert np.array_equal(pixels(tmp_path / "decoded" / f"{name}.png", ONE), reconstruction)


def test_codes_are_the_pipelines(run: Run, photos: Path) -> None:
    assert run("encode", CLASSES, photos / "exact.png", "--out", "out/codes.safetensors").code == 0
    stored = load_file("out/codes.safetensors")
    with Image.open(photos / "exact.png") as image:
        codes = golden_pipeline("class_parallel").encode([image])
    assert list(stored) == ["level_0", "level_1"]
    assert all(torch.equal(stored[f"level_{index}"].long(), level) for index, level in enumerate(codes))
    with safe_open("out/codes.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["names"]) == [str(photos / "exact.png")]


def test_folders_are_searched_in_depth(run: Run, photos: Path, tmp_path: Path) -> None:
    (photos / "notes.txt").write_text("not a picture")
    (photos / ".hidden.png").write_text("nor this")
    (photos / "more" / "exact.jpg").write_bytes((photos / "wide.jpg").read_bytes())
    assert run("encode", CLASSES, photos).code == 0
    assert len(load_file("codes.safetensors")["level_0"]) == 5
    assert run("decode", CLASSES, "codes.safetensors", "--out-dir", "out", "--out", "sheet.png").code == 0
    decoded = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert decoded == ["alpha.png", "exact-2.png", "exact.png", "gray.png", "wide.png"]
    pixels(tmp_path / "sheet.png", sheet_size(3, 2))


def test_decode_levels_alone(run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("encode", CLASSES, photos / "exact.png").code == 0
    for name, option in (("all", ()), ("top", ("--top-only",)), ("bottom", ("--bottom-only",))):
        assert run("decode", CLASSES, "codes.safetensors", *option, "--out", f"{name}.png", *FP32).code == 0
    assert run("decode", CLASSES, "codes.safetensors", *FP32).code == 0
    sheets = [pixels(tmp_path / f"{name}.png", ONE) for name in ("decoded", "all", "top", "bottom")]
    assert np.array_equal(sheets[0], sheets[1])
    assert len({sheet.tobytes() for sheet in sheets}) == 3


def test_progress_is_shown_on_a_terminal(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run("encode", CLASSES, photos, "--batch-size", "3")
    assert "Encoding" in result.err
    assert "4/4" in result.err


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("command, output", [("reconstruct", "reconstruct.png"), ("encode", "codes.safetensors")])
def test_one_bad_file_among_several(run: Run, photos: Path, broken: Path, command: str, output: str) -> None:
    scale = ("--scale", "1") if command == "reconstruct" else ()
    result = run(command, CLASSES, photos / "exact.png", broken, photos / "missing.png", photos / "wide.jpg", *scale)
    assert result.code == 2
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "broken.png: not a readable picture" in errors[0]
    assert "missing.png: no such file" in errors[1]
    assert "Traceback" not in result.err
    if command == "reconstruct":
        pixels(Path(output), captioned_size(2, 2))
    else:
        assert len(load_file(output)["level_0"]) == 2


@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_only_bad_files(run: Run, broken: Path, tmp_path: Path, command: str) -> None:
    assert_one_line_error(run(command, CLASSES, broken), "broken.png", "not a readable picture")
    assert not list(tmp_path.glob("*.png"))
    assert not list(tmp_path.glob("*.safetensors"))
    (tmp_path / "empty").mkdir()
    assert_one_line_error(run(command, CLASSES, tmp_path / "empty"), "empty", "no pictures")


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({"level_0": torch.zeros(1, 4, 4)}, ("level_0", "integers [B, 4, 4]", "float32")),
        ({"level_0": torch.zeros(1, 5, 4, dtype=torch.int32)}, ("level_0", "[B, 4, 4]", "[1, 5, 4]")),
        ({"level_0": torch.zeros(0, 4, 4, dtype=torch.int32)}, ("expected codes of one picture or more", "got none")),
        ({"level_0": torch.full((1, 4, 4), 64)}, ("level_0", "0 to 63", "64 to 64")),
        ({"level_0": torch.full((1, 4, 4), -1)}, ("level_0", "0 to 63", "-1 to -1")),
        ({"level_2": torch.zeros(1, 4, 4, dtype=torch.int32)}, ("level_0, level_1", "level_2")),
        (
            {"level_0": torch.zeros(1, 4, 4, dtype=torch.int32), "level_1": torch.zeros(2, 8, 8, dtype=torch.int32)},
            ("one batch size", "[1, 2]"),
        ),
    ],
)
def test_codes_that_do_not_fit(run: Run, tensors: dict[str, torch.Tensor], words: tuple[str, ...]) -> None:
    save_file(tensors, "codes.safetensors")
    assert_one_line_error(run("decode", CLASSES, "codes.safetensors"), "codes.safetensors", *words)


def test_codes_without_names_or_a_level(run: Run, tmp_path: Path) -> None:
    save_file({"level_0": torch.zeros(2, 4, 4, dtype=torch.uint8)}, "codes.safetensors")
    result = run("decode", CLASSES, "codes.safetensors", "--out-dir", "out")
    assert result.code == 0
    assert "has no level_1" in result.err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["picture-00000.png", "picture-00001.png"]
    assert_one_line_error(run("decode", CLASSES, "codes.safetensors", "--bottom-only"), "--bottom-only")


def test_names_in_a_file_of_codes_lead_nowhere(run: Run, tmp_path: Path) -> None:
    metadata = {"names": json.dumps(["../../escaped.png", "/absolute.png"])}
    save_file({"level_0": torch.zeros(2, 4, 4, dtype=torch.int32)}, "codes.safetensors", metadata)
    assert run("decode", CLASSES, "codes.safetensors", "--out-dir", "a/b").code == 0
    assert sorted(file.name for file in (tmp_path / "a/b").iterdir()) == ["absolute.png", "escaped.png"]


def test_a_file_that_holds_no_codes(run: Run, photos: Path) -> None:
    result = run("decode", CLASSES, photos / "exact.png")
    assert_one_line_error(result, "exact.png", "not a safetensors file")
    assert_one_line_error(run("decode", CLASSES, "missing.safetensors"), "missing.safetensors", "no such file")


# -------------------------------------------------------------------------------------------------------- whole sets


def flat(photos: Path, tmp_path: Path) -> Path:
    """A folder of pictures alone, one of them broken."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("exact.png", "gray.png", "wide.jpg"):
        (folder / name).write_bytes((photos / name).read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_encode_into_shards_and_again(run: Run, photos: Path, tmp_path: Path) -> None:
    command = ("encode", CLASSES, flat(photos, tmp_path), "--shards", "codes", "--shard-size", "2")
    result = run(*command)
    assert result.code == 0
    assert "3 images in" in result.out
    assert "images/s" in result.out
    assert "wrote codes (2 shards, codes of 3 pictures)" in result.out
    assert "note: 1 picture could not be read: see codes/*.broken.json" in result.err
    (tmp_path / "codes" / "codes-000001.tar").unlink()
    again = run(*command)
    assert "codes: 1 of 2 shards are there already" in again.out
    assert "2 images in" in again.out
    assert "wrote codes (2 shards, codes of 3 pictures)" in again.out
    assert json.loads((tmp_path / "codes" / "codes-000000.broken.json").read_text()) == ["broken.png"]


def test_shards_of_a_set_without_a_good_picture(run: Run, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "broken.png").write_bytes(b"no picture")
    result = run("encode", CLASSES, "set", "--shards", "codes")
    assert result.code == 2
    assert "1 picture could not be read" in result.err


def test_a_set_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert_one_line_error(run("encode", CLASSES, "set", "--shards", "codes"), "set: expected one or more .tar shards")
    assert not (tmp_path / "codes").exists()
