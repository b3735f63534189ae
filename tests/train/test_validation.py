"""Validation: what it measures, that training does not feel it, and that the number of processes does not matter."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="training needs the train extra")

from accelerate import Accelerator
from small_runs import TRANSFORMER, losses, same, stage1, stage2, weights, write_pictures

from hqtvae_fast import checkpoint
from hqtvae_fast.pictures.images import psnr
from hqtvae_fast.train.data import PictureDataset, open_source
from hqtvae_fast.train.run import train_stage1, train_stage2
from hqtvae_fast.train.stage2 import Stage2
from hqtvae_fast.train.validation import HeldOut, validate_vae

TRAIN = {"stage1": train_stage1, "stage2": train_stage2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def held_out(pictures) -> HeldOut:
    return HeldOut(PictureDataset(open_source(pictures), 16, training=False), limit=7, batch_size=3)


@pytest.fixture(scope="module")
def trained_vae(pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    train_stage1(stage1(pictures, out))
    return out / "model"


def run_of(stage, pictures, trained_vae, out, **changes):
    if stage == "stage1":
        return stage1(pictures, out, restart_unused=True, **changes)
    return stage2(pictures, trained_vae, out, **changes)


def without_validation(out: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name[:4] != "val_"} for row in losses(out)]


def test_held_out_pictures_are_spread_and_shared_out(pictures):
    dataset = PictureDataset(open_source(pictures), 16, training=False)
    whole = [key for batch in HeldOut(dataset, limit=7, batch_size=3) for key in batch.keys]
    assert len(whole) == 7
    assert {key.split("/")[0] for key in whole} == {"bright", "dark"}
    parts = [HeldOut(dataset, limit=7, batch_size=3, rank=rank, world=8) for rank in range(8)]
    assert sorted(key for part in parts for batch in part for key in batch.keys) == sorted(whole)
    assert list(parts[7]) == []
    assert len(HeldOut(dataset, limit=2048, batch_size=3).indices) == 20


@pytest.mark.parametrize("batch_size, started", [(7, 0), (4, 1), (1, 2)])
def test_no_worker_is_started_for_nothing(pictures, batch_size, started):
    """One of a batch or two takes longer to start than to read them, at each validation."""
    dataset = PictureDataset(open_source(pictures), 16, training=False)
    batches = iter(HeldOut(dataset, limit=7, batch_size=batch_size, workers=2))
    next(batches)
    assert len(multiprocessing.active_children()) == started


@torch.no_grad()
def test_stage1_quality(held_out, trained_vae):
    vae = checkpoint.load(trained_vae).vae.eval()
    metrics = validate_vae(Accelerator(cpu=True), vae, held_out)
    images = torch.cat([batch.images for batch in held_out])
    codes = vae.encode(images)
    rebuilt = vae.decode(codes).clamp(-1, 1)
    assert metrics["psnr"] == pytest.approx(float(psnr(rebuilt / 2 + 0.5, images / 2 + 0.5).mean()), rel=1e-5)
    assert metrics["mse"] == pytest.approx(float((rebuilt - images).square().mean()), rel=1e-5)
    for level, maps in enumerate(codes):
        share = maps.flatten().bincount(minlength=16).double() / maps.numel()
        assert metrics[f"usage_{level}"] == pytest.approx(float((share > 0).double().mean()))
        entropy = -(share[share > 0] * share[share > 0].log()).sum()
        assert metrics[f"perplexity_{level}"] == pytest.approx(float(entropy.exp()))


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_training_does_not_feel_it(pictures, trained_vae, tmp_path, stage):
    for name, changes in (("off", {"validation": "none"}), ("on", {"validation": str(pictures), "validate_every": 2})):
        TRAIN[stage](run_of(stage, pictures, trained_vae, tmp_path / name, workers=1, **changes))
    assert without_validation(tmp_path / "on") == without_validation(tmp_path / "off") == losses(tmp_path / "off")
    assert same(weights(tmp_path / "on"), weights(tmp_path / "off"))
    validated = [row["step"] for row in losses(tmp_path / "on") if any(name[:4] == "val_" for name in row)]
    assert validated == [2, 4, 6]
    names = {
        "stage1": {"val_psnr", "val_mse", "val_usage_1", "val_perplexity_0"},
        "stage2": {"val_loss", "val_level_1"},
    }
    assert names[stage] <= losses(tmp_path / "on")[-1].keys()


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_run_with_it_goes_on_exactly(pictures, trained_vae, tmp_path, stage):
    changes = {"validation": str(pictures), "validate_every": 3, "log_every": 2}
    TRAIN[stage](run_of(stage, pictures, trained_vae, tmp_path / "whole", **changes))
    for _ in range(2):
        TRAIN[stage](run_of(stage, pictures, trained_vae, tmp_path / "pieces", stop_after=3, **changes))
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    assert [row["step"] for row in losses(tmp_path / "whole")] == [2, 3, 4, 6]


def test_a_part_of_the_classes_keeps_their_labels(pictures, trained_vae, tmp_path, monkeypatch):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "dark").symlink_to(pictures / "dark")
    seen, original = [], Stage2._condition

    def record(self, batch, codes):
        if not self.transformer.training:
            seen.extend(batch.labels.tolist())
        return original(self, batch, codes)

    monkeypatch.setattr(Stage2, "_condition", record)
    changes = {"validation": str(tmp_path / "held"), "validate_every": 2, "steps": 2}
    train_stage2(stage2(pictures, trained_vae, tmp_path / "run", **changes))
    assert seen == [1] * 10


def test_text_is_validated_too(pictures, trained_vae, tmp_path):
    model = {**TRANSFORMER, "condition": "text", "prefix_length": 4, "prefix_vocab_size": 64}
    changes = {"model": model, "caption": "{class_name} picture", "validation": str(pictures), "validate_every": 2}
    train_stage2(stage2(pictures, trained_vae, tmp_path, steps=2, **changes))
    assert {"val_text", "val_loss", "val_level_0", "val_level_1"} <= losses(tmp_path)[-1].keys()


def test_a_cap_that_is_none(pictures, tmp_path):
    with pytest.raises(ValueError, match="validation_pictures: expected an integer of 1 or more; got 0"):
        stage1(pictures, tmp_path, validation_pictures=0)
