"""docs/training.md says what the code does: options, fields, files and sizes are asked of it."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from pages import ROOT, blocks, options

pytest.importorskip("accelerate", reason="training needs the train extra")

from hqtvae_fast import checkpoint
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.train.config import Stage1Run, Stage2Run, read_run
from hqtvae_fast.train.models import make_transformer_config, make_vae_config
from hqtvae_fast.train.presets import load_preset, load_size

PAGE = ROOT / "docs" / "training.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = blocks(PAGE)


def test_it_is_short_and_begins_with_the_two_commands():
    assert len(TEXT.splitlines()) < 150
    assert [line.split()[1] for line in BLOCKS[0].text.splitlines()] == ["train", "sample"]


def test_commands_have_the_options_that_it_names():
    """Of the text; those in blocks are asked of each command in test_pages.py."""
    known = set().union(*(options([name]) for name in ("train", "sample", "encode", "evaluate", "figure")))
    known |= {"--help", "--nproc-per-node"}  # the second is torchrun's
    assert set(re.findall(r"--[a-z][a-z-]+", TEXT)) <= known


def test_its_yaml_files_are_runs():
    runs = [yaml.safe_load(block.text) for block in BLOCKS if block.language == "yaml"]
    assert len(runs) == 2
    common = {"data": "pictures", "out": "out"}
    make_vae_config(read_run(Stage1Run, None, {**runs[0], **common}).model)
    make_transformer_config(read_run(Stage2Run, None, {**runs[1], **common, "vae": "vae"}).model, make_vae_config({}))


@pytest.mark.parametrize("size", ["tiny", "small", "paper"])
def test_sizes_are_as_the_table_has_them(size):
    (row,) = re.findall(rf"\| `{size}` \|(.*)\|", TEXT)
    side, maps, parameters, _ = (cell.strip() for cell in row.split("|"))
    if size == "paper":
        first, second = load_preset("stage1", "imagenet").fields, load_preset("stage2", "S").fields
    else:
        first, second = load_size(size, "stage1"), load_size(size, "stage2")
    vae = make_vae_config(first["model"])
    few = {**second["model"], "condition": "class", "num_classes": 3}
    with torch.device("meta"):
        made = checkpoint.build(HQTVAEConfig(vae=vae, transformer=make_transformer_config(few, vae)))
    assert side == f"{vae.resolution}x{vae.resolution}"
    assert maps == " and ".join(f"{side}x{side}" for side in vae.level_sides)
    found = [float(number) for number in re.findall(r"([\d.]+) M", parameters)]
    assert found == pytest.approx([count / 1e6 for count in made.sizes().values()], rel=0.03)


def test_bytes_of_a_picture_in_the_cache():
    from hqtvae_fast.train.code_cache import CacheSpec

    spec = {"data": "", "vae": "", "config": make_vae_config({}), "pictures": 1, "mirrored": False}
    assert CacheSpec(**spec, content="codes").picture_bytes == 640
    assert CacheSpec(**spec, content="latents").picture_bytes == 256 * 1024


def test_what_it_says_of_fine_tuning():
    from hqtvae_fast.train.initial import KEPT_FROM
    from hqtvae_fast.train.sizes import FINE_TUNING, pictures_seen

    assert f"{KEPT_FROM:.0f} dB or more" in TEXT
    assert pictures_seen("stage2", FINE_TUNING, 60) == pictures_seen("stage2", "tiny", 60) / 8
