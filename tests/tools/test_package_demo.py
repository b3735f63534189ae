"""A composed demo, trained for a few updates, is packaged with its figures: what its card says is measured."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import composed_figures
from composed_figures import Rates, as_table, best_scale, make_references, measured, nearest
from demo_data import Part
from emoji_set import compositions, shards
from emoji_set.compositions import HeldPairs
from emoji_set.names import Emoji
from emoji_set.styles import Style
from emoji_set.things import STYLES
from PIL import Image

from hqtvae_fast.train.data import PLAIN

TOOLS = Path(composed_figures.__file__).parent
SIZE = 48
HUES = {"fox": "navy", "owl": "lime", "key": "maroon"}
MODEL = {"resolution": SIZE, "channels": 32, "channel_multipliers": [1, 2], "num_res_blocks": 1}
MODEL |= {"attention_resolutions": [], "latent_channels": 16, "embed_dim": 8, "codebook_sizes": [32, 32]}
PRIOR = {"dim": 32, "condition": "text", "prefix_length": 24, "prefix_vocab_size": 300}
PRIOR |= {"body": {"num_layers": 1, "num_heads": 2}, "head": {"num_layers": 1, "num_heads": 2}}
QUICK = {"batch_size": 4, "steps": 2, "workers": 0, "log_every": 1, "keep": 1, "precision": "no"}


class Hue(torch.nn.Module):
    """The middle's colour as features: what the network of the extra is to a real set."""

    name = "hue"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        side = pixels.shape[-1]
        middle = pixels[:, :, side // 3 : -side // 3, side // 3 : -side // 3].float() - 127.5
        return middle.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three things, each an even colour; one pair of things and one of thing and style are never shown."""
    folder = tmp_path_factory.mktemp("composed")
    held = HeldPairs(styles=frozenset({("fox", "noto")}), things=frozenset({("fox", "owl")}))
    drawn = [Style(style, "MIT", lambda one: Image.new("RGBA", (8, 8), HUES[one.name])) for style in STYLES]
    emoji = {name: Emoji(("1F98A",), name, "Animals", "mammal") for name in HUES}
    every = list(compositions.compositions(tuple(HUES), held))
    shards.write_shards(shards.make_composed(every, emoji, drawn, SIZE, held), folder, SIZE, "composed")
    return folder


class Recites:
    """A pipeline that draws each caption's own picture, or that of the caption so many further on."""

    def __init__(self, part: Part, further: int = 0) -> None:
        self.known, self.further = dict(zip(part.captions, part.pixels.float() / 255, strict=True)), further
        self.asked: list[float] = []

    def __call__(self, *, prompt, guidance_scale, **_):
        self.asked.append(guidance_scale)
        names = [*prompt[self.further :], *prompt[: self.further]]
        return type("Output", (), {"images": torch.stack([self.known[name] for name in names])})

    def encode(self, images):
        return images

    def decode(self, codes, output_type):
        return codes * 0.5 + 0.5


@pytest.fixture(scope="module")
def parts(data) -> tuple[Part, Part]:
    names = (f"composed-{SIZE}-{split}.tar" for split in ("train", "val"))
    train, val = (Part.read(data / name, SIZE, PLAIN) for name in names)
    return train, val


def test_a_model_that_recites_is_right_and_one_that_mistakes_is_not(parts):
    train, val = parts
    references, some = make_references(parts, Hue()), val.some(40)
    pipe = Recites(some)
    found = measured(pipe, some, references, 0.7)
    assert pipe.asked == list(composed_figures.SCALES)
    assert [rates.what for rates in found[:3]] == ["the pictures themselves", "reconstructed", "drawn, guidance 1"]
    assert all(rates.background == rates.thing == 1 for rates in found)
    shown = train.some(60)
    mistaken = measured(Recites(shown, further=31), shown, references, 0.7, scales=(1.0,))[-1]
    assert mistaken.background < 0.6
    assert mistaken.thing < 0.1
    assert nearest(train.pixels[7], train.pixels) == 7


def test_the_table_and_the_best_scale():
    held_out = [Rates(name, 0.9, thing) for name, thing in zip("pqabcde", (1, 1, 0.5, 0.6, 0.8, 0.7, 0.1), strict=True)]
    assert best_scale(held_out) == 2.0
    assert as_table(held_out[:1], held_out[2:3]).splitlines()[-1] == "| p | 90% | 100% | 90% | 50% |"


@pytest.mark.slow
def test_a_finished_run_is_packaged_with_its_figures(data, tmp_path, monkeypatch):
    pytest.importorskip("accelerate", reason="training needs the train extra")
    import model_card
    import package_demo

    from hqtvae_fast.train.config import Stage1Run, Stage2Run, read_run
    from hqtvae_fast.train.run import train_stage1, train_stage2

    work, shard = tmp_path / "work", {part: str(data / f"composed-{SIZE}-{part}.tar") for part in ("train", "val")}
    common = {"data": shard["train"], "validation": shard["val"], "validation_pictures": 8, **QUICK}
    first = {"restart_unused": True, "model": MODEL, "out": str(work / "vae")}
    train_stage1(read_run(Stage1Run, None, {**common, **first}))
    more = {"vae": str(work / "vae" / "model"), "caption": "plain", "condition_dropout": 0.5, "model": PRIOR}
    prompts = {"sample_prompts": ["fox, 3d, on red", "small owl, flat"], "sample_temperature": 0.7, "vocab_size": 300}
    train_stage2(read_run(Stage2Run, None, {**common, **more, **prompts, "out": str(work / "hqt")}))
    folder = tmp_path / "demo" / str(SIZE)
    folder.mkdir(parents=True)
    shutil.copy(TOOLS / "demo" / "96" / "card.md", folder)
    monkeypatch.setattr(model_card, "DEMO", folder.parent)
    monkeypatch.setattr(package_demo, "open_extractor", lambda name, device: Hue())
    monkeypatch.setattr(package_demo, "PROMPTS", 6)
    out = tmp_path / "packaged"
    package_demo.main(data, work, out)
    card = (out / "README.md").read_text()
    assert "| drawn, guidance 5 |" in card
    assert "{" not in card
    assert json.loads((out / "training.json").read_text())[1]["updates"] == 2
    assert Image.open(out / "unseen.jpg").width > 10 * 100
