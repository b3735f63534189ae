"""Small sets of pictures in every form, features that cost nothing, and the command in this process."""

from __future__ import annotations

import io
import json
import re
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hqtvae_fast.cli import main
from hqtvae_fast.evaluate import Extractor

SIDE = 16


class Pooled(nn.Module):
    """Means of a 2x2 grid: 12 features."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) / 255


def pooled() -> nn.Module:
    """What ``evaluate.conftest:pooled`` names: a factory as a user writes it."""
    return Pooled()


def make_pixels(count: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """uint8 [N, side, side, 3]: blotches of colour."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


def write_folder(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for index, array in enumerate(pixels):
        Image.fromarray(array).save(folder / f"{index:05d}.png")
    return folder


def write_shard(file: Path, pixels: np.ndarray, captions: list[str]) -> Path:
    with tarfile.open(file, "w") as tar:
        for index, (array, caption) in enumerate(zip(pixels, captions, strict=True)):
            data = io.BytesIO()
            Image.fromarray(array).save(data, "PNG")
            about = json.dumps({"caption": caption}).encode()
            for name, content in ((f"{index:05d}.png", data.getvalue()), (f"{index:05d}.json", about)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file


@pytest.fixture
def extractor() -> Extractor:
    return Extractor(Pooled(), "pooled", torch.device("cpu"))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The same network as a TorchScript file."""
    file = tmp_path / "pooled.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Pooled(), torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)), file)
    return file


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """And as torch.export saves it, for any number of pictures."""
    file = tmp_path / "pooled.pt2"
    images = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    program = torch.export.export(Pooled(), (images,), dynamic_shapes=({0: torch.export.Dim("B")},))
    torch.export.save(program, file)
    return file


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str | Path) -> Result:
        code = main([str(argument) for argument in arguments])
        out, err = (re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr())
        return Result(code, out, err)

    return call
