"""The embedded model: it is there, small, documented, and draws what it is asked for."""

from __future__ import annotations

import json

import pytest
import torch

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.checkpoint import DEMO_DIRECTORY, resolve

LIMIT_BYTES = 20_000_000


@pytest.fixture(scope="module")
def demo() -> HQTVAEPipeline:
    return HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype="fp32")


def test_its_files():
    files = {file.name: file.stat().st_size for file in DEMO_DIRECTORY.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert sum(files.values()) < LIMIT_BYTES
    assert json.loads((DEMO_DIRECTORY / "config.json").read_text())["format"] == "hqtvae_fast"


def test_its_card_gives_credit_and_figures():
    card = (DEMO_DIRECTORY / "README.md").read_text()
    for needed in ("Noto", "Fluent", "Twemoji", "CC-BY 4.0", "MIT", "reconstruction PSNR", "nearest"):
        assert needed in card
    for line in card.splitlines():
        if line.startswith("!["):
            assert (DEMO_DIRECTORY / line.rsplit("(", 1)[1].rstrip(")")).is_file()


def test_a_local_folder_of_its_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("demo") == DEMO_DIRECTORY
    (tmp_path / "demo").mkdir()
    assert resolve("demo").resolve() == tmp_path / "demo"


@pytest.mark.parametrize(
    "prompt,channel", [("red heart, flat", 0), ("red apple, 3d", 0), ("green heart, flat", 1), ("blue heart, flat", 2)]
)
def test_it_draws_in_the_colours_of_the_words(demo, prompt, channel):
    images = demo(prompt=prompt, num_images=8, temperature=0.8, seed=0, output_type="pt", progress=False).images
    ink = 1 - images.mean(dim=(0, 2, 3))  # how much of each colour is missing: what is drawn is on white
    others = [ink[index] for index in range(3) if index != channel]
    assert float(ink[channel]) < 0.8 * float(torch.stack(others).max())


def test_one_prompt_gives_one_picture_again(demo):
    first = demo(prompt="owl, 3d", num_images=3, seed=5, progress=False)
    again = demo(prompt="owl, 3d", seed=[first.seeds[2]], progress=False)
    assert torch.equal(first.codes[1][2], again.codes[1][0])
