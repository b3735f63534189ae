"""Running commands in this process, tiny checkpoints with something missing or wrong, and pictures to read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from hqtvae_fast.cli import main

GOLDEN = Path(__file__).parents[1] / "golden"
RESOLUTION = 64


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default outputs land in a folder of the test's own; messages do not depend on who runs the tests where."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(
        "hqtvae_fast.cli.output.PATIENCE", 600.0
    )  # what is said then depends on how busy the machine is
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> Result:
        code = main([str(argument) for argument in arguments])
        out, err = (re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr())
        return Result(code, out, err)

    return call


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """A PNG file's pixels, as integers; asserts that it is one, whole, RGB and of this (width, height)."""
    with Image.open(path) as image:
        image.load()
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert size is None or image.size == size
        return np.asarray(image).astype(int)


def sheet_size(columns: int, rows: int) -> tuple[int, int]:
    """(width, height) of a sheet with gaps of 2 pixels."""
    return columns * (RESOLUTION + 2) - 2, rows * (RESOLUTION + 2) - 2


@pytest.fixture
def text_checkpoint(tmp_path: Path) -> Path:
    """The text-conditional golden model with a vocabulary of its own."""
    folder = tmp_path / "text"
    shutil.copytree(GOLDEN / "text_parallel", folder)
    words = ["[PAD]", "[UNK]", "a", "red", "cube", "on", "blue", "sphere"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def nan_checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "nan"
    shutil.copytree(GOLDEN / "class_parallel", folder)
    data = torch.load(folder / "ckpt/last.ckpt", weights_only=True)
    state = data.get("state_dict", data)
    next(value for key, value in state.items() if key.startswith("stage2.") and value.is_floating_point())[0] = np.nan
    torch.save(data, folder / "ckpt/last.ckpt")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of pictures: ``exact.png`` has the model's size, the others need changes, ``broken.png`` is cut off."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    across, down = np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 80))
    wide = Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))
    wide.save(folder / "wide.jpg")
    wide.resize((RESOLUTION, RESOLUTION)).save(folder / "exact.png")
    wide.convert("L").save(folder / "gray.png")
    with_alpha = wide.copy()
    with_alpha.putalpha(wide.convert("L"))
    with_alpha.save(folder / "more" / "alpha.png")
    return folder


@pytest.fixture
def broken(photos: Path) -> Path:
    file = photos / "broken.png"
    file.write_bytes((photos / "exact.png").read_bytes()[:-100])
    return file
