"""``hqtvae sample``: what it writes, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_values
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file

from hqtvae_fast.cli.codes import write_codes
from hqtvae_fast.engine import Executor

from .conftest import RESOLUTION, Result, Run, assert_one_line_error, pixels, sheet_size

CLASSES = GOLDEN / "class_parallel"
ONE = (RESOLUTION, RESOLUTION)


@pytest.fixture
def sample(run: Run) -> Any:
    """``hqtvae sample`` in single precision."""

    def call(*arguments: str | Path) -> Result:
        return run("sample", *arguments, "--dtype", "fp32")

    return call


# -------------------------------------------------------------------------------------------------------- happy paths


def test_sheet_has_a_row_for_each_class(sample: Any, tmp_path: Path) -> None:
    result = sample(CLASSES, "--classes", "0,2-3", "--num-images", "2", "--out", tmp_path / "new" / "sheet.png")
    assert result.code == 0
    assert result.err == ""
    assert "6 images in" in result.out
    assert "images/s" in result.out
    assert "wrote" in result.out
    assert "sheet.png (6 pictures" in result.out
    pixels(tmp_path / "new" / "sheet.png", sheet_size(2, 3))


def test_writes_a_sheet_when_no_output_is_named(sample: Any, tmp_path: Path) -> None:
    (tmp_path / "sample.png").write_text("what was here before")
    assert sample(CLASSES, "--classes", "1", "--num-images", "5", "--columns", "4").code == 0
    pixels(tmp_path / "sample.png", sheet_size(4, 2))
    assert [file.name for file in tmp_path.iterdir()] == ["sample.png"]


def test_sheet_of_enlarged_pictures_with_captions(sample: Any, tmp_path: Path) -> None:
    plain, shown = tmp_path / "plain.png", tmp_path / "shown.png"
    for out, more in ((plain, ()), (shown, ("--scale", "4", "--captions"))):
        assert sample(CLASSES, "--classes", "0", "--out", out, *more).code == 0
    with Image.open(plain) as small, Image.open(shown) as large:
        assert large.width == 4 * small.width
        assert large.height > 4 * small.height


def test_webp_files_hold_the_same_pixels_and_notes(sample: Any, tmp_path: Path) -> None:
    for kind in ("png", "webp"):
        result = sample(CLASSES, "--classes", "3", "--num-images", "2", "--out-dir", tmp_path / kind, "--format", kind)
        assert result.code == 0, result.err
    assert sorted(file.name for file in (tmp_path / "webp").iterdir()) == [
        "class-0003-0000.webp",
        "class-0003-0001.webp",
    ]
    with (
        Image.open(tmp_path / "png" / "class-0003-0001.png") as one,
        Image.open(tmp_path / "webp" / "class-0003-0001.webp") as other,
    ):
        assert np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))
        assert other.getexif()[ExifTags.Base.ImageDescription] == one.text["Description"]  # type: ignore[attr-defined]


def test_separate_files_carry_what_draws_them_again(sample: Any, tmp_path: Path) -> None:
    arguments = ("--top-k", "32,none", "--top-p", "0.9", "--temperature", "0.95,1", "--out-dir")
    assert (
        sample(CLASSES, "--classes", "3", "--classes", "7", "--num-images", "2", *arguments, tmp_path / "a").code == 0
    )
    names = ["class-0003-0000.png", "class-0003-0001.png", "class-0007-0000.png", "class-0007-0001.png"]
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == names
    with Image.open(tmp_path / "a" / names[3]) as image:
        about = json.loads(image.text["Description"])  # type: ignore[attr-defined]
    assert about["class"] == 7
    again = sample(CLASSES, "--classes", "7", "--seed", str(about["seed"]), *arguments, tmp_path / "b")
    assert again.code == 0
    first, second = pixels(tmp_path / "a" / names[3], ONE), pixels(tmp_path / "b" / "class-0007-0000.png", ONE)
    assert np.abs(first - second).max() <= 2  # the codes are the same; a batch of another size may round otherwise


def test_an_interruption_leaves_what_is_finished(sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two batches of two are whole: their files, the sheet of them and their codes."""
    arguments = ("--classes", "0-4", "--batch-size", "2", "--out-dir", "files", "--out", "sheet.png", "--save-codes")
    assert sample(CLASSES, *arguments, "whole.safetensors").code == 0
    whole = {file.name: pixels(file) for file in (tmp_path / "files").iterdir()}
    original, batches = Executor.draw, []

    def stopped(self: Executor, *rows: Any, **how: Any) -> Any:
        batches.append(rows)
        if len(batches) > 2:
            raise KeyboardInterrupt
        return original(self, *rows, **how)

    monkeypatch.setattr(Executor, "draw", stopped)
    result = sample(CLASSES, *arguments, "part.safetensors", "--out-dir", "part")
    assert result.code == 130
    assert "wrote 4 pictures into part" in result.out
    part = {file.name: pixels(file) for file in (tmp_path / "part").iterdir()}
    assert len(part) == 4
    assert all(np.array_equal(picture, whole[name]) for name, picture in part.items())
    codes, all_codes = load_file("part.safetensors"), load_file("whole.safetensors")
    assert all(bool((codes[key] == all_codes[key][:4]).all()) for key in all_codes)
    pixels(tmp_path / "sheet.png", sheet_size(2, 2))


def test_a_full_disk_ends_the_drawing(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written in threads: what fails there reaches the user all the same."""

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("hqtvae_fast.cli.sheets.write_file", full)
    assert_one_line_error(sample(CLASSES, "--classes", "1", "--out-dir", "files"), "No space left on device")


def test_prompts(sample: Any, text_checkpoint: Path, tmp_path: Path) -> None:
    prompts = ("--prompt", "A red cube!", "--prompt", "立方体")
    assert sample(text_checkpoint, *prompts, "--out-dir", tmp_path / "out").code == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a-red-cube-0000.png", "立方体-0000.png"]


def test_unconditional(sample: Any, tmp_path: Path) -> None:
    assert sample(GOLDEN / "uncond_reduce", "--num-images", "4").code == 0
    pixels(tmp_path / "sample.png", sheet_size(2, 2))


def test_three_levels_top_and_bottom_alone(sample: Any, tmp_path: Path) -> None:
    arguments = (GOLDEN / "class_level3", "--classes", "1", "--out")
    assert sample(*arguments, "all.png").code == 0
    assert sample(*arguments, "top.png", "--top-only").code == 0
    assert sample(*arguments, "bottom.png", "--bottom-only").code == 0
    sheets = [pixels(tmp_path / name, ONE) for name in ("all.png", "top.png", "bottom.png")]
    assert not np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[1], sheets[2])


def test_prior_and_refiner(sample: Any, tmp_path: Path) -> None:
    top, bottom = GOLDEN / "global_top", GOLDEN / "global_bottom"
    assert sample(top, "--classes", "1", "--refiner", bottom, "--save-codes", "codes.safetensors").code == 0
    assert list(load_file("codes.safetensors")) == ["level_0", "level_1"]
    assert not (tmp_path / "sample.png").exists()  # another output was asked for
    coarse = sample(top, "--classes", "1")
    assert coarse.code == 0
    assert coarse.err.startswith("warning: the checkpoint draws top codes only")
    assert coarse.err.count("\n") == 1


@pytest.mark.parametrize("conditions, maps, drawn", [("1", 2, 4), ("1-2", 2, 4), ("1-3", 1, 6)])
def test_given_top_codes_are_kept(sample: Any, conditions: str, maps: int, drawn: int) -> None:
    levels = [golden_values("class_parallel")[f"codes_{name}"][:maps] for name in ("top", "bottom")]
    write_codes(Path("given.safetensors"), levels, [f"some/photo{index}.jpg" for index in range(maps)])
    arguments = ("--classes", conditions, "--given-top", "given.safetensors", "--num-images", "2")
    result = sample(CLASSES, *arguments, "--save-codes", "codes.safetensors", "--out-dir", "out")
    assert result.code == 0
    top = load_file("codes.safetensors")["level_0"]
    assert len(top) == drawn
    assert all(bool((codes == levels[0][index // 2 % maps]).all()) for index, codes in enumerate(top))
    assert Path("out/class-0001-photo0-0000.png").is_file()


def test_given_top_codes_without_condition(sample: Any) -> None:
    write_codes(Path("given.safetensors"), [golden_values("uncond_reduce")["codes_top"][:2]], ["a.png", "b.png"])
    assert sample(GOLDEN / "uncond_reduce", "--given-top", "given.safetensors", "--out-dir", "out").code == 0
    assert sorted(file.name for file in Path("out").iterdir()) == ["a-0000.png", "b-0000.png"]


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--classes", "10"), ("--classes", "0 to 9", "got 10")),
        (("--classes", "-1"), ("--classes", "'-1'")),
        (("--classes", "3-1"), ("--classes", "'3-1'")),
        (("--classes", "0-99999999999"), ("--classes", "0-99999999999")),
        (("--classes", "one"), ("--classes", "'one'")),
        (("--classes", ""), ("--classes",)),
        (("--prompt", "a red cube"), ("class-conditional", "expected --classes", "got --prompt")),
        (("--classes", "1", "--prompt", "a red cube"), ("--classes and --prompt",)),
        ((), ("class-conditional", "expected --classes", "got none")),
        (("--classes", "1", "--top-k", "65"), ("--top-k", "1 to 64", "got 65")),
        (("--classes", "1", "--top-k", "0"), ("--top-k", "got 0")),
        (("--classes", "1", "--top-k", "2.5"), ("--top-k", "an integer", "'2.5'")),
        (("--classes", "1", "--top-k", "1,2,3"), ("--top-k", "2", "got 3")),
        (("--classes", "1", "--top-p", "0"), ("--top-p", "(0, 1]", "got 0")),
        (("--classes", "1", "--top-p", "1.01"), ("--top-p", "(0, 1]", "got 1.01")),
        (("--classes", "1", "--top-p", "nan"), ("--top-p", "nan")),
        (("--classes", "1", "--temperature", "0"), ("--temperature", "from 1e-30", "got 0")),
        (("--classes", "1", "--temperature", "-1"), ("--temperature", "from 1e-30", "got -1")),
        (("--classes", "1", "--temperature", "warm"), ("--temperature", "a number", "'warm'")),
        (("--classes", "1", "--num-images", "0"), ("--num-images",)),
        (("--classes", "1", "--batch-size", "0"), ("--batch-size",)),
        (("--classes", "1", "--seed", str(2**64)), ("--seed", "64 bits")),
        (("--classes", "1", "--device", "cudda"), ("device", "cudda")),
        (("--classes", "1", "--top-only", "--bottom-only"), ("--top-only and --bottom-only",)),
        (("--classes", "1", "--given-top", "none.safetensors"), ("none.safetensors", "no such file")),
        (("--classes", "1", "--out", "."), ("expected a file",)),
        (("--classes", "1", "--colour", "red"), ("--colour", "hqtvae sample --help")),
    ],
)
def test_bad_arguments(sample: Any, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_one_line_error(sample(CLASSES, *arguments), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_where_there_is_none(sample: Any) -> None:
    assert_one_line_error(sample(CLASSES, "--classes", "1", "--device", "cuda"), "device", "'cuda'")


@pytest.mark.parametrize(
    "case, arguments, words",
    [
        ("text_parallel", ("--prompt", "a red cube"), ("tokenizer.json",)),
        ("text_parallel", ("--classes", "1"), ("text-conditional", "got --classes")),
        ("uncond_reduce", ("--classes", "1"), ("got --classes",)),
        ("stage1_conv2", (), ("stage 1 only",)),
        ("global_bottom", (), ("--given-top", "bottom codes only")),
        ("global_top", ("--classes", "1", "--bottom-only"), ("--bottom-only", "no codes of that level")),
        ("global_top", ("--classes", "1", "--refiner", str(CLASSES)), ("no pair",)),
    ],
)
def test_wrong_checkpoint(sample: Any, case: str, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = sample(GOLDEN / case, *arguments)
    warnings = [line for line in result.err.splitlines(keepends=True) if line.startswith("warning: ")]
    assert_one_line_error(Result(result.code, result.out, result.err.replace("".join(warnings), "")), *words)


def test_missing_checkpoint(sample: Any, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert_one_line_error(sample(missing, "--classes", "1"), str(missing), "no such directory")
    missing.mkdir()
    assert_one_line_error(sample(missing, "--classes", "1"), str(missing), "config.json")


def test_weights_that_are_no_numbers(sample: Any, nan_checkpoint: Path) -> None:
    assert_one_line_error(sample(nan_checkpoint, "--classes", "1"), "last.ckpt", "stage2.", "NaN")


def test_given_top_codes_that_do_not_fit(sample: Any) -> None:
    top = golden_values("class_parallel")["codes_top"][:1].repeat(3, 1, 1)
    write_codes(Path("given.safetensors"), [top], ["a", "b", "c"])
    arguments = (CLASSES, "--given-top", "given.safetensors", "--classes")
    assert_one_line_error(sample(*arguments, "1-2"), "--given-top", "1 or 2 maps", "got 3")
    write_codes(Path("given.safetensors"), [top + 64], ["a", "b", "c"])
    assert_one_line_error(sample(*arguments, "1"), "given.safetensors: level_0", "0 to 63")
    save_file({"level_1": golden_values("class_parallel")["codes_bottom"]}, "given.safetensors")
    assert_one_line_error(sample(*arguments, "1"), "--given-top", "level_0")


def test_guidance_by_a_negative_prompt(sample: Any, tmp_path: Path) -> None:
    """Guided pictures are others; at scale 1 they are those without."""
    for name, options in {
        "plain": (),
        "led": ("--guidance", "3,1.5", "--negative-prompt", "rocket, 3d"),
        "one": ("--guidance", "1"),
    }.items():
        assert sample("demo", "--prompt", "owl, 3d", *options, "--out", f"{name}.png").code == 0
    one, led, plain = (pixels(tmp_path / f"{name}.png") for name in ("one", "led", "plain"))
    assert (one == plain).all()
    assert (led != plain).any()


def test_guidance_that_cannot_be_names_its_options(sample: Any) -> None:
    for options, said in (
        (("--guidance", "2"), "--guidance: expected 1, as this checkpoint has no null condition"),
        (("--guidance", "2,x"), "--guidance: expected a number, or one per level such as 1,0.9; got '2,x'"),
        (("--guidance", "-1"), "--guidance: expected numbers from 0 to 100"),
        (("--guidance", "2", "--negative-prompt", "cat"), "--negative-prompt: expected none"),
    ):
        result = sample(CLASSES, "--classes", "1", *options)
        assert result.code != 0
        assert said in " ".join((result.out + result.err).split())


# -------------------------------------------------------------------------------------------------------- completion


def test_a_picture_is_completed_or_its_codes(sample: Any, run: Run) -> None:
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 255, (80, 96, 3), dtype=np.uint8)).save("photo.jpg")
    assert run("encode", CLASSES, "photo.jpg", "--out", "codes.safetensors").code == 0
    kept = load_file("codes.safetensors")
    Image.fromarray(np.repeat([[255], [0]], 40, 0).astype(np.uint8).repeat(96, 1)).save("mask.png")
    for image, keep in (("photo.jpg", "top-half"), ("codes.safetensors", "top-half"), ("photo.jpg", "mask.png")):
        arguments = ("--classes", "1-2", "--num-images", "2", "--image", image, "--keep", keep)
        assert sample(CLASSES, *arguments, "--save-codes", "drawn.safetensors").code == 0
        drawn = load_file("drawn.safetensors")
        for name, level in drawn.items():
            half = level.shape[1] // 2
            assert level.shape[0] == 4
            assert torch.equal(level[:, :half], kept[name][:, :half].expand(4, -1, -1))
            assert not torch.equal(level[0], level[1])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--image", "photo.jpg"), ("--keep: expected top-half", "with image; got none")),
        (("--keep", "top-half"), ("--image: expected a picture",)),
        (("--image", "photo.jpg", "--keep", "upper"), ("--keep: expected top-half", "'upper'")),
        (("--image", "none.jpg", "--keep", "top-half"), ("none.jpg: no such file",)),
        (("--image", "none.safetensors", "--keep", "top-half"), ("none.safetensors: no such file",)),
        (("--image", "photo.jpg", "--keep", "top-half", "--shards", "out"), ("--shards: expected", "--image")),
    ],
)
def test_completions_that_cannot_be_are_refused_before_weights_are_read(
    sample: Any, monkeypatch: Any, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    Image.new("RGB", (64, 64)).save("photo.jpg")
    monkeypatch.setattr("hqtvae_fast.cli.asked.open_pipeline", lambda *_, **__: pytest.fail("opened"))
    assert_one_line_error(sample(CLASSES, "--classes", "1", *arguments), *words)


def test_a_file_of_some_levels_cannot_be_completed(sample: Any) -> None:
    save_file({"level_1": golden_values("class_parallel")["codes_bottom"]}, "bottom.safetensors")
    arguments = ("--classes", "1", "--image", "bottom.safetensors", "--keep", "top-half")
    assert_one_line_error(sample(CLASSES, *arguments), "--image: expected codes of all 2 levels in bottom.safetensors")
