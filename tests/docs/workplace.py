"""Small stand-ins for what the pages speak of: a released checkpoint, photographs, sets, shards, and a .venv for make."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from pages import ROOT
from PIL import Image, ImageDraw

SIDE, CLASSES = 64, 1000


def make_workplace(folder: Path) -> None:
    released(folder / "released")
    for name, count in {"val": 6, "samples": 6, "photos": 2, "pictures/food": 6, "pictures/cat": 6}.items():
        save_pictures(folder / name, count)
    for name in ("photo.jpg", "turkey.webp"):
        picture(7).save(folder / name)
    for name in ("train-000", "train-001", "emoji-128-val", "emoji-128-train"):
        write_shard(folder / f"{name}.tar", count=6)
    for name in ("examples", "benchmarks", "csrc", "Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    stand_in_for_venv(folder / ".venv" / "bin")


def picture(seed: int) -> Image.Image:
    """A coloured disc on white, of this package's own hand."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (SIDE, SIDE), "white")
    x, y, r = (int(number) for number in rng.integers(12, 24, 3))
    ImageDraw.Draw(image).ellipse((x, y, x + r, y + r), fill=tuple(int(number) for number in rng.integers(0, 255, 3)))
    return image


def save_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        picture(index).save(folder / f"{index}.png")


def write_shard(file: Path, count: int) -> None:
    with tarfile.open(file, "w") as tar:
        for index in range(count):
            data = io.BytesIO()
            picture(index).save(data, "WEBP")
            about = json.dumps({"name": f"disc {index}", "style": "flat"}).encode()
            for name, content in ((f"{index}.webp", data.getvalue()), (f"{index}.json", about)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def released(folder: Path) -> None:
    """The tiny class-conditional checkpoint in the released format, with as many classes as the real one has."""
    shutil.copytree(ROOT / "tests" / "golden" / "class_parallel", folder)
    file = folder / "config.yaml"
    text, few = re.subn(r"n_classes: 10\b", f"n_classes: {CLASSES}", file.read_text())
    assert few == 2
    file.write_text(text)
    checkpoint = torch.load(folder / "ckpt" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["stage2.sos.weight"] = checkpoint["state_dict"]["stage2.sos.weight"].repeat(
        CLASSES // 10, 1
    )
    torch.save(checkpoint, folder / "ckpt" / "last.ckpt")


def stand_in_for_venv(folder: Path) -> None:
    """What ``make`` calls once .venv is made: hqtvae is this package's, the tools of a test run only say their names."""
    folder.mkdir(parents=True)
    calls = {"hqtvae": f'exec "{sys.executable}" -m hqtvae_fast.cli "$@"'}
    calls |= {name: f'echo "{name} $*"' for name in ("ruff", "mypy", "python")}
    for name, call in calls.items():
        (folder / name).write_text(f"#!/bin/sh\n{call}\n")
        os.chmod(folder / name, 0o755)
    (folder.parent / ".installed").touch()
