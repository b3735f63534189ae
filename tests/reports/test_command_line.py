"""The command: what it costs before it works, what it refuses before it reads weights, how its help and sheets look."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import GOLDEN
from PIL import Image

from hqtvae_fast import checkpoint
from hqtvae_fast.cli import main, model_facts, output, sheets
from hqtvae_fast.cli.app import app
from hqtvae_fast.cli.options import open_pipeline
from hqtvae_fast.cli.sheets import PictureWriter
from hqtvae_fast.hardware import published
from hqtvae_fast.model import cost
from hqtvae_fast.pipeline import HQTVAEPipeline
from hqtvae_fast.train.presets import load_preset
from hqtvae_fast.train.sizing.models import preset_config

CLASSES = str(GOLDEN / "class_parallel")
HEAVY = ("torch", "numpy", "PIL", "safetensors", "tokenizers", "huggingface_hub", "yaml", "accelerate", "matplotlib")
PROBE = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from hqtvae_fast.cli import main
ends = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(arguments)
    ends.append([arguments, code, said.getvalue(), [name for name in {HEAVY!r} if name in sys.modules]])
print(json.dumps(ends))
"""
SLIPS = [
    ["smaple"],
    ["sample", "demo", "--clases", "1"],
    ["sample"],
    ["sample", "demo", "--num-images", "none"],
    ["sample", "no/such/folder"],
    ["sample", "demo"],  # wants a prompt, as its configuration tells
    ["sample", "demo", "--prompt", "owl", "--out", "owl.gif"],
    ["sample", "demo", "--prompt", "owl", "--temperature", "none"],
    ["reconstruct", "demo", "no-such.png"],
    ["decode", "demo", "no-such.safetensors", "--out", "owl.tiff"],
]


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group but bench, which is another package's."""
    command = command or typer.main.get_command(app)
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        if name != "bench":
            yield from commands(inner, (*path, name))


HELPS = [["--version"], *([*path, "--help"] for path in commands())]


def ends_of(calls: list[list[str]]) -> list[tuple[list[str], int, str, list[str]]]:
    """Of each call, one after another in a new process: its arguments, exit code, words, and the heavy modules then."""
    command = [sys.executable, "-c", PROBE, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"})
    return [tuple(end) for end in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def helps() -> list[tuple[list[str], int, str, list[str]]]:
    return ends_of(HELPS)


def test_T7_help_and_version_import_nothing_heavy(helps: list[tuple[list[str], int, str, list[str]]]) -> None:
    for arguments, code, said, modules in helps:
        assert (code, modules) == (0, []), arguments
        assert arguments == ["--version"] or "Usage:" in said


def test_T7_a_slip_of_the_finger_imports_nothing_heavy() -> None:
    for slip, code, said, modules in ends_of(SLIPS):
        assert (code, [name for name in modules if name != "yaml"]) == (2, []), slip
        assert said.startswith("error: ")
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["sample", "--classes", "10"], "--classes: expected 0 to 9; got 10"),
        (["sample", "--classes", "1", "--top-k", "2,3,4"], "--top-k: expected one value, or 2, one a level; got 3"),
        (["sample", "--classes", "1", "--top-k", "65"], "--top-k"),
        (["sample", "--classes", "1", "--seed", str(2**70)], "--seed"),
        (["sample", "--classes", "1", "--given-top", "none.safetensors"], "none.safetensors: no such file"),
        (["sample", "--classes", "1", "--out", "x.bmp"], "one of .png, .jpg, .jpeg, .webp; got .bmp"),
        (["sample", "--classes", "10", "--shards", "set"], "--classes: expected 0 to 9; got 10"),
        (["sample", "--prompts", "none.txt"], "none.txt: No such file"),
        (["reconstruct", "none.png"], "none.png: no such file"),
        (["encode", "none.png"], "none.png: no such file"),
        (["decode", "none.safetensors"], "none.safetensors: no such file"),
        (["figure levels", "--prompt", "owl"], "class-conditional"),
        (["figure redraw", "--classes", "1", "--image", "none.png"], "none.png: no such file"),
        (["figure usage", "--pictures", "none"], "none"),
        (["tune", "--batches", "0"], "--batches"),
    ],
)
def test_T7_arguments_are_checked_before_a_weight_is_read(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(HQTVAEPipeline, "from_pretrained", opened)
    monkeypatch.setattr("hqtvae_fast.checkpoint.load", opened)
    assert main([*arguments[0].split(), CLASSES, *arguments[1:]]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_T7_a_wait_is_told_after_a_second(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def slow(*_: Any, **__: Any) -> str:
        time.sleep(0.2)
        return "a pipeline"

    monkeypatch.setattr(HQTVAEPipeline, "from_pretrained", slow)
    for patience, told in ((0.01, "Opening demo ...\n"), (60.0, "")):
        monkeypatch.setattr(output, "PATIENCE", patience)
        assert open_pipeline("demo", None, None) == "a pipeline"
        assert capsys.readouterr().err == told


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("name, kind", [("x.jpg", "JPEG"), ("x.jpeg", "JPEG"), ("x.webp", "WEBP"), ("x", "PNG")])
def test_F18_a_picture_is_what_its_name_says(name: str, kind: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    writer = PictureWriter(tmp_path / name, None, 1)
    writer.add(picture, "")
    writer.finish()
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (kind, (8, 8))


def test_F3_one_process_of_a_launcher_writes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.chdir(tmp_path)
    assert main(["sample", CLASSES, "--classes", "1", "--out", "x.png"]) == 0
    with Image.open("x.png") as image:
        assert image.size == (64, 64)


# ---------------------------------------------------------------------------------------------------------- info, help


def test_T10_info_begins_with_a_line_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", CLASSES, "--no-measure"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith(f"{CLASSES}: draws 64x64 pictures from class labels; ")
    assert "M parameters (vae " in first
    assert second == ""


def test_T10_info_and_presets_count_parameters_alike() -> None:
    opened = checkpoint.load(CLASSES)
    assert cost.sizes(opened.config) == opened.sizes()
    assert cost.sizes(preset_config(load_preset("stage1", "imagenet")))["vae"] == pytest.approx(89.5e6, rel=1e-3)


def test_T10_a_busy_machine_is_said_and_measured_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter(dataclasses.replace(published("L40S"), bandwidth=speed) for speed in (1e9, 3e9, 2e9))
    monkeypatch.setattr(model_facts, "measure_this_machine", lambda: next(found))
    monkeypatch.setattr(model_facts.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(model_facts.os, "getloadavg", lambda: (1.7, 1.0, 1.0))
    load, device = model_facts._measure()
    assert (load, device.bandwidth) == (1.7, 3e9)


def test_T11_help_has_neither_types_of_flags_nor_a_docstrings_lines(
    helps: list[tuple[list[str], int, str, list[str]]],
) -> None:
    for arguments, _, shown, _ in helps:
        assert not any(kind in shown for kind in ("<bool>", "<str>", "<int>", "<int ", "<list", "<float")), arguments
        assert arguments == ["--version"] or "Example: hqtvae" in shown
    assert any("<int8|fp8>" in shown for _, _, shown, _ in helps)
    encode = next(shown for arguments, _, shown, _ in helps if arguments == ["encode", "--help"])
    assert " shards of pictures among them, into shards of codes: stopped\n" not in encode  # as in the docstring


def test_T11_bench_takes_its_options_as_any_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "precision", "demo", "--imges", "1"]) == 2
    assert "No such option: --imges" in capsys.readouterr().err


def test_T11_shell_completion() -> None:
    asked = {"_HQTVAE_COMPLETE": "complete_bash", "COMP_WORDS": "hqtvae recon", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "hqtvae_fast.cli"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **asked})
    assert done.stdout.strip() == "reconstruct"


def test_T11_a_reconstruction_says_what_each_picture_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "green").save("a.png")
    captions: list[str] = []
    monkeypatch.setattr(sheets, "with_caption", lambda image, text: captions.append(text) or image)
    assert main(["reconstruct", CLASSES, "a.png", "--levels", "--scale", "2"]) == 0
    with Image.open("reconstruct.png") as image:
        assert image.size == (4 * 130 - 2, 128)
    assert captions[0] == "original"
    assert [caption.partition(":")[0] for caption in captions[1:]] == ["all levels", "top only", "bottom only"]
    assert all(caption.endswith(" dB") for caption in captions[1:])
