"""Conditions withheld in training: the null condition's row, what is drawn for it, and what a run keeps of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import TRANSFORMER, VAE, losses, same, stage1, stage2, weights, write_pictures

from hqtvae_fast import checkpoint
from hqtvae_fast.config import ConfigError, HQTVAEConfig, from_dict, to_dict
from hqtvae_fast.model import HQLogits
from hqtvae_fast.train.initial import init_transformer
from hqtvae_fast.train.losses import UNCOUNTED, stage2_loss
from hqtvae_fast.train.run import train_stage1, train_stage2
from hqtvae_fast.train.sizing.models import make_transformer_config
from hqtvae_fast.train.stage2 import Stage2

TABLE = "prefix.embedding.weight"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trained_vae(pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    train_stage1(stage1(pictures, out, steps=2))
    return out / "model"


def config_of(condition: str, **changes) -> HQTVAEConfig:
    vae = from_dict({"vae": VAE, "transformer": None}).vae
    return HQTVAEConfig(vae, make_transformer_config({**TRANSFORMER, "condition": condition, **changes}, vae))


def test_a_configuration_without_the_field_has_no_null_condition():
    data = to_dict(config_of("class", null_condition=True))
    assert from_dict(data).transformer.null_index == 2
    del data["transformer"]["null_condition"]
    assert from_dict(data).transformer.null_index is None
    with pytest.raises(ConfigError, match="null_condition: expected condition='class' or 'text'"):
        config_of("none", null_condition=True)


def test_the_null_condition_is_in_configuration_and_checkpoint(pictures, trained_vae, tmp_path):
    train_stage2(stage2(pictures, trained_vae, tmp_path / "run", condition_dropout=0.5))
    made = checkpoint.load(tmp_path / "run" / "model")
    assert made.config.transformer.null_condition
    assert made.config.classes.count == 2
    assert made.transformer.state_dict()[TABLE].shape[0] == 3
    train_stage2(stage2(pictures, trained_vae, tmp_path / "plain"))
    plain = checkpoint.load(tmp_path / "plain" / "model")
    assert not plain.config.transformer.null_condition
    assert plain.transformer.state_dict()[TABLE].shape[0] == 2


def test_a_share_of_the_conditions_is_withheld_in_training_alone(pictures, trained_vae, tmp_path, monkeypatch):
    seen: dict[bool, list[int]] = {True: [], False: []}
    inside = Stage2._loss

    def loss(self, model, batch, codes, targets):
        hook = self.transformer.prefix.register_forward_pre_hook(
            lambda _, args: seen[self.transformer.training].extend(args[0].tolist())
        )
        try:
            return inside(self, model, batch, codes, targets)
        finally:
            hook.remove()

    monkeypatch.setattr(Stage2, "_loss", loss)
    run = stage2(
        pictures, trained_vae, tmp_path, condition_dropout=0.25, steps=60, validation=str(pictures), validate_every=20
    )
    train_stage2(run)
    withheld = sum(label == 2 for label in seen[True])
    assert len(seen[True]) == 240
    assert 35 <= withheld <= 85  # 60 are expected; 3.7 standard deviations
    assert seen[False]
    assert 2 not in seen[False]


def test_all_conditions_withheld_train_the_null_row_alone(pictures, trained_vae, tmp_path):
    train_stage2(stage2(pictures, trained_vae, tmp_path / "one", condition_dropout=1, steps=1, weight_decay=0))
    train_stage2(stage2(pictures, trained_vae, tmp_path / "three", condition_dropout=1, steps=3, weight_decay=0))
    one, three = (weights(tmp_path / name)[f"transformer.{TABLE}"] for name in ("one", "three"))
    assert torch.equal(one[:2], three[:2])
    assert not torch.equal(one[2], three[2])


def test_a_run_with_withheld_conditions_goes_on_exactly(pictures, trained_vae, tmp_path):
    train_stage2(stage2(pictures, trained_vae, tmp_path / "whole", condition_dropout=0.5))
    train_stage2(stage2(pictures, trained_vae, tmp_path / "parts", condition_dropout=0.5, stop_after=2))
    train_stage2(stage2(pictures, trained_vae, tmp_path / "parts", condition_dropout=0.5))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    with pytest.raises(ConfigError, match=r"condition_dropout: expected 0\.5, as this run was started with"):
        train_stage2(stage2(pictures, trained_vae, tmp_path / "parts", condition_dropout=0.1))


def test_captions_are_withheld_too(pictures, trained_vae, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in pictures.rglob("*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    captions = {path.name: f"{path.parent.name} picture" for path in pictures.rglob("*.png")}
    (flat / "captions.json").write_text(json.dumps(captions))
    model = {**TRANSFORMER, "condition": "text", "prefix_length": 4, "prefix_vocab_size": 64}
    for share in (0.5, 1.0):
        out = tmp_path / f"run {share}"
        train_stage2(stage2(flat, trained_vae, out, model=model, steps=3, condition_dropout=share))
        assert all(torch.isfinite(torch.tensor(row["text"])) for row in losses(out))
        assert weights(out)[f"transformer.{TABLE}"].shape[0] == 65
        assert weights(out)["transformer.prefix.head.weight"].shape[0] == 64
    assert [row["text"] for row in losses(out)] == [0] * 3  # no text was there to be predicted


def test_text_that_is_withheld_does_not_count():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 12, generator=generator)
    levels = tuple(torch.randn(3, size, 5, generator=generator) for size in (1, 4))
    codes = [torch.zeros(3, size, dtype=torch.int64) for size in (1, 4)]
    text = torch.arange(21).view(3, 7) % 12
    masked = text.clone()
    masked[1] = UNCOUNTED
    rows = torch.tensor([0, 2])
    found = stage2_loss(HQLogits(levels, logits), codes, masked).text
    wanted = stage2_loss(HQLogits(tuple(level[rows] for level in levels), logits[rows]), [c[rows] for c in codes])
    alone = stage2_loss(
        HQLogits(tuple(level[rows] for level in levels), logits[rows]), [c[rows] for c in codes], text[rows]
    )
    assert wanted.text is None
    torch.testing.assert_close(found, alone.text)


def saved(directory: Path, names=(), **changes) -> Path:
    config = dataclasses.replace(config_of("class", **changes), id2label=names)
    checkpoint.save(dataclasses.replace(checkpoint.build(config), config=config), directory)
    return directory


def init(path: Path, classes, **changes):
    said: list[str] = []
    vae = config_of("class").vae
    return init_transformer(str(path), "class", classes, None, changes, vae, say=said.append), said[0]


def test_fine_tuning_keeps_the_null_condition_or_begins_one(tmp_path):
    has = saved(tmp_path / "has", ("dog", "cat"), null_condition=True)
    rows = checkpoint.load(has).transformer.state_dict()[TABLE]
    model, said = init(has, ("cat", "fish", "dog"))  # not asked for, and kept all the same
    kept = model.state_dict()[TABLE]
    assert model.config.null_index == 3
    assert torch.equal(kept[[0, 2, 3]], rows[[1, 0, 2]])
    assert "null" not in said
    lacks = saved(tmp_path / "lacks", ("dog", "cat"))
    model, said = init(lacks, ("dog", "cat"), null_condition=True)
    assert model.state_dict()[TABLE].shape[0] == 3
    assert said.endswith("; the null condition is new")
