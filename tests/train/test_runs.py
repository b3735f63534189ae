"""Runs of both stages: they learn, go on after a kill as if there had been none, and do not depend on the ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import BLOCKS, TRANSFORMER, VAE, losses, same, stage1, stage2, weights, write_pictures

from hqtvae_fast import HQTVAEPipeline, checkpoint
from hqtvae_fast.train import run as runs
from hqtvae_fast.train.config import Stage1Run, read_run
from hqtvae_fast.train.loop.runner import TrainingError
from hqtvae_fast.train.loop.schedule import warmup_cosine
from hqtvae_fast.train.run import train_stage1, train_stage2
from hqtvae_fast.train.stage1 import Stage1
from hqtvae_fast.train.stage2 import Stage2

RAMP = {"warmup_steps": 0, "total_steps": 6}  # of six updates on 20 pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def trained_vae(pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    train_stage1(stage1(pictures, out))
    return out / "model"


def test_stage1_under_autocast_chooses_codes_in_fp32(pictures, tmp_path):
    train_stage1(stage1(pictures, tmp_path, precision="bf16", steps=2))
    assert len(losses(tmp_path)) == 2


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


def kill_at(monkeypatch, task, step):
    original = task.update

    def update(self, batches, now):
        if now == step:
            raise Killed
        return original(self, batches, now)

    monkeypatch.setattr(task, "update", update)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_stage1_goes_on_after_a_kill(pictures, tmp_path, monkeypatch, step):
    train_stage1(stage1(pictures, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        kill_at(patch, Stage1, step)
        with pytest.raises(Killed):
            train_stage1(stage1(pictures, tmp_path / "killed"))
    train_stage1(stage1(pictures, tmp_path / "killed"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_stage2_goes_on_after_a_kill(pictures, trained_vae, tmp_path, monkeypatch):
    train_stage2(stage2(pictures, trained_vae, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        kill_at(patch, Stage2, 5)
        with pytest.raises(Killed):
            train_stage2(stage2(pictures, trained_vae, tmp_path / "killed"))
    train_stage2(stage2(pictures, trained_vae, tmp_path / "killed"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_training_in_pieces(pictures, tmp_path):
    train_stage1(stage1(pictures, tmp_path / "whole"))
    for _ in range(3):
        assert not (tmp_path / "pieces" / "model").exists()
        train_stage1(stage1(pictures, tmp_path / "pieces", stop_after=2))
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")


def test_training_in_pieces_of_time(pictures, tmp_path):
    train_stage1(stage1(pictures, tmp_path / "whole"))
    train_stage1(stage1(pictures, tmp_path / "pieces", stop_after_minutes=1e-6))
    assert len(losses(tmp_path / "pieces")) == 1
    train_stage1(stage1(pictures, tmp_path / "pieces", stop_after_minutes=60.0))
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")


def test_checkpoints_are_few_and_whole(pictures, tmp_path):
    train_stage1(stage1(pictures, tmp_path, steps=9, keep=2))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-0000008", "step-0000009"]


@pytest.mark.parametrize("adversarial_start, steps", [pytest.param(0, 80, marks=pytest.mark.slow), (100, 40)])
def test_stage1_learns(pictures, tmp_path, adversarial_start, steps):
    changes = {"steps": steps, "save_every": 0, "restart_unused": True}  # a codebook far from the data learns slowly
    train_stage1(stage1(pictures, tmp_path, adversarial_start=adversarial_start, **changes))
    rows = losses(tmp_path)
    assert rows[-1]["mse"] < 0.5 * rows[0]["mse"]
    assert ("discriminator" in rows[-1]) == (adversarial_start == 0)
    assert 0 < rows[-1]["usage_1"] <= 1
    assert 1 <= rows[-1]["perplexity_1"] <= 16


def test_the_perceptual_loss_sees_another_square_in_each_update(pictures, tmp_path, monkeypatch):
    seen = []

    class Distance(torch.nn.Module):
        name = "a recorder"

        def forward(self, images, references):
            seen.append(references)
            return (images - references).square().mean(dim=(1, 2, 3))

    monkeypatch.setattr(runs, "load_perceptual", lambda *files: Distance())
    changes = {"perceptual_crop": 16, "stop_after": 3, "model": {**VAE, "resolution": 32}, "adversarial": 0.0}
    for folder in ("one", "other", "other"):  # the latter in two pieces
        train_stage1(
            stage1(pictures, tmp_path / folder, **{**changes, **({} if folder == "other" else {"stop_after": 6})})
        )
    assert {tuple(square.shape) for square in seen} == {(4, 3, 16, 16)}
    assert all(torch.equal(one, other) for one, other in zip(seen[:6], seen[6:], strict=True))
    assert len({float(square.mean()) for square in seen[:6]}) == 6


@pytest.mark.filterwarnings("error:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("start", [0, 3])
def test_the_discriminator_follows_the_runs_schedule(pictures, tmp_path, monkeypatch, start):
    original, rates = Stage1.update, []

    def record(self, batches, step):
        if self.settings.weights.adversarial_at(step):
            rates.append((step, self.discriminator_optimizer.param_groups[0]["lr"]))
        return original(self, batches, step)

    monkeypatch.setattr(Stage1, "update", record)
    run = stage1(pictures, tmp_path, adversarial_start=start, stop_after=5)  # resumed after its fifth update
    train_stage1(run)
    train_stage1(run)
    assert rates == [(step, pytest.approx(1e-3 * warmup_cosine(step, **RAMP))) for step in range(start, 6)]


@pytest.mark.filterwarnings("error:Detected call of `lr_scheduler.step")
def test_no_discriminator_without_its_loss(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("hqtvae_fast.train.stage1.PatchDiscriminator", None)
    train_stage1(stage1(pictures, tmp_path, adversarial=0.0, steps=2))
    assert "discriminator" not in losses(tmp_path)[-1]


def test_stage2_on_a_vae_stored_in_half_precision(pictures, trained_vae, tmp_path):
    made = checkpoint.load(trained_vae)
    made.vae.bfloat16()
    checkpoint.save(made, tmp_path / "half")
    train_stage2(stage2(pictures, tmp_path / "half", tmp_path / "run", steps=2, precision="bf16"))
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.parametrize("soft_labels", [0.0, 1.0])
def test_stage2_learns_and_draws(pictures, trained_vae, tmp_path, soft_labels):
    run = stage2(pictures, trained_vae, tmp_path, steps=40, save_every=0, soft_labels=soft_labels, picture_every=40)
    train_stage2(run)
    rows = losses(tmp_path)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert (tmp_path / "pictures" / "0000040.png").is_file()
    pipe = HQTVAEPipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="fp32")
    assert pipe([0, 1], output_type="pt", progress=False).images.shape == (2, 3, 16, 16)


def test_text_conditions(pictures, trained_vae, tmp_path):
    names = {path.name: {"name": path.parent.name} for path in sorted(pictures.rglob("*.png"))}
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in pictures.rglob("*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    (flat / "captions.json").write_text(json.dumps({name: f"{row['name']} picture" for name, row in names.items()}))
    model = {**TRANSFORMER, "condition": "text", "prefix_length": 4, "prefix_vocab_size": 64}
    train_stage2(stage2(flat, trained_vae, tmp_path / "run", model=model, steps=3, sample_prompts=["dark picture"]))
    assert "text" in losses(tmp_path / "run")[0]
    pipe = HQTVAEPipeline.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert len(pipe(prompt="bright picture", progress=False).images) == 1


def test_accumulation_changes_nothing_that_is_a_mean(pictures, trained_vae, tmp_path):
    still = {**TRANSFORMER, "body": {**BLOCKS, "residual_dropout": 0.0}, "head": {**BLOCKS, "residual_dropout": 0.0}}
    for name, parts in (("whole", 1), ("cut", 2)):
        train_stage2(stage2(pictures, trained_vae, tmp_path / name, model=still, accumulate=parts, steps=4))
    for left, right in zip(losses(tmp_path / "whole"), losses(tmp_path / "cut"), strict=True):
        assert left == pytest.approx(right, rel=1e-4)


def test_a_loss_that_is_no_number_names_update_batch_and_checkpoint(pictures, tmp_path, monkeypatch):
    original = Stage1.update

    def poison(self, batches, step):
        metrics = original(self, batches, step)
        return {**metrics, "loss": metrics["loss"] * (float("nan") if step == 4 else 1)}

    monkeypatch.setattr(Stage1, "update", poison)
    with pytest.raises(TrainingError, match=r"update 4: loss is nan; its batch: .*png.*; .*step-0000004"):
        train_stage1(stage1(pictures, tmp_path))


def test_other_pictures_than_the_run_began_with(pictures, tmp_path):
    train_stage1(stage1(pictures, tmp_path / "run", stop_after=2))
    with pytest.raises(ValueError, match="expected the pictures that this run was started on"):
        train_stage1(stage1(pictures / "dark", tmp_path / "run"))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"out": ""}, "out: expected a path, got none"),
        ({"epochs": 3}, "steps, epochs: expected one of them"),
        ({"precision": "int4"}, "precision: expected one of no, bf16, fp16; got 'int4'"),
    ],
)
def test_runs_that_cannot_be(pictures, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        stage1(pictures, changes.pop("out", tmp_path), **changes)


def test_a_file_with_an_unknown_field(tmp_path):
    (tmp_path / "run.yaml").write_text("batchsize: 3")
    with pytest.raises(ValueError, match=r"run\.yaml: unknown field batchsize; expected some of"):
        read_run(Stage1Run, tmp_path / "run.yaml", {})
