"""What README promises: a folder of sixty pictures, one command, a quarter of an hour on two cores."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("accelerate", reason="training needs the train extra")

from PIL import Image
from sixty import CLASSES, captioned, class_folders

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.pictures.images import open_image, psnr, to_tensor

MINUTES = 15
DRAWN = 32  # of each class or caption: the share of nine in ten that is right varies by a tenth at 24 pictures


def hqtvae(*arguments: object) -> str:
    command = [sys.executable, "-m", "hqtvae_fast.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def pixels(files: list[Path]) -> np.ndarray:
    images = [np.asarray(Image.open(file).convert("RGB"), dtype=np.float64) for file in files]
    return np.stack(images).reshape(len(files), -1)


def nearest(drawn: list[Path], known: list[Path]) -> list[Path]:
    """For each drawn picture, the known one at the least mean squared distance."""
    ours, others = pixels(drawn), pixels(known)
    squared = (ours**2).sum(1)[:, None] - 2 * ours @ others.T + (others**2).sum(1)[None]
    return [known[index] for index in squared.argmin(1)]


def reconstruction_psnr(run: Path, files: list[Path]) -> float:
    pipe = HQTVAEPipeline.from_pretrained(run, device="cpu", dtype="fp32")
    images = to_tensor([open_image(file) for file in files], pipe.config.vae.resolution)
    rebuilt = pipe.decode(pipe.encode(images), output_type="pt")
    return float(psnr(rebuilt, images * 0.5 + 0.5).mean())


@pytest.mark.slow
def test_class_folders_become_a_model_that_draws_them(tmp_path):
    pictures, run = class_folders(tmp_path / "pictures"), tmp_path / "run"
    began = time.monotonic()
    hqtvae("train", pictures, "--out", run)
    assert time.monotonic() - began < 60 * MINUTES
    files = sorted(pictures.rglob("*.webp"))
    assert reconstruction_psnr(run, files) >= 20
    hqtvae("sample", run, "--classes", ",".join(CLASSES), "--num-images", DRAWN, "--out-dir", tmp_path / "drawn")
    right = 0
    for name in CLASSES:
        drawn = sorted((tmp_path / "drawn").glob(f"*{name}*"))
        assert len(drawn) == DRAWN
        right += sum(file.parent.name == name for file in nearest(drawn, files))
    assert right >= 0.8 * DRAWN * len(CLASSES)


@pytest.mark.slow
def test_captions_become_a_model_that_draws_them(tmp_path):
    pictures, run = captioned(tmp_path / "pictures"), tmp_path / "run"
    began = time.monotonic()
    hqtvae("train", pictures, "--out", run)
    assert time.monotonic() - began < 60 * MINUTES
    files = sorted(pictures.glob("*.webp"))
    assert reconstruction_psnr(run, files) >= 20
    prompts = ["red apple", "tiger", "bus", "banana", "fox", "taxi"]
    asked = [argument for prompt in prompts for argument in ("--prompt", prompt)]
    hqtvae("sample", run, *asked, "--num-images", DRAWN, "--out-dir", tmp_path / "drawn")
    right = 0
    for prompt in prompts:
        drawn = sorted((tmp_path / "drawn").glob(f"{prompt.replace(' ', '-')}-*"))
        assert len(drawn) == DRAWN
        right += sum(file.stem == prompt.replace(" ", "-") for file in nearest(drawn, files))
    assert right >= 0.8 * DRAWN * len(prompts)
