"""Checkpoints of a run: models that open as such, from which training goes on bit for bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import BLOCKS, losses, same, stage1, stage2, weights, write_pictures

from hqtvae_fast import HQTVAEPipeline, checkpoint
from hqtvae_fast.train.data import BrokenCount
from hqtvae_fast.train.loop.position import OtherRunError, Position, more_updates, read_position
from hqtvae_fast.train.loop.records import TIMES, Pace, read_records
from hqtvae_fast.train.loop.schedule import warmup_constant_lr
from hqtvae_fast.train.run import train_stage1, train_stage2

STEPS = 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def vae(pictures, tmp_path_factory) -> Path:
    """A run of stage 1, with a discriminator."""
    out = tmp_path_factory.mktemp("vae")
    train_stage1(stage1(pictures, out, steps=STEPS))
    return out


@pytest.fixture(scope="module")
def drawing(pictures, vae, tmp_path_factory) -> Path:
    """A run of stage 2 on it."""
    out = tmp_path_factory.mktemp("drawing")
    train_stage2(stage2(pictures, vae, out, steps=STEPS))
    return out


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step-{number:07d}"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    parts = checkpoint.load(folder).modules()
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def test_a_checkpoint_is_the_model_and_nothing_is_written_twice(vae, drawing):
    for run in (vae, drawing):
        last = step(run, STEPS)
        assert same(weights_of(last), weights(run))
        assert not same(weights_of(step(run, 2)), weights(run))
        assert [file.name for file in last.glob("*.safetensors")] == ["model.safetensors"]
        assert (last / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()
    assert "discriminator" not in " ".join(weights_of(step(vae, STEPS)))


def test_an_unfinished_run_draws(drawing, tmp_path):
    run = shutil.copytree(drawing, tmp_path / "run")
    shutil.rmtree(run / "model")
    with pytest.warns(UserWarning, match=rf"run: not finished; opening checkpoints/step-000000{STEPS}"):
        pipe = HQTVAEPipeline.from_pretrained(run, device="cpu", dtype="fp32")
    whole = HQTVAEPipeline.from_pretrained(drawing, device="cpu", dtype="fp32")
    drawn = [made([0, 1], output_type="codes", progress=False).codes for made in (pipe, whole)]
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def test_a_stage_1_that_is_not_finished_is_a_vae(pictures, vae, tmp_path):
    run = shutil.copytree(vae, tmp_path / "vae")
    shutil.rmtree(run / "model")
    with pytest.warns(UserWarning, match="not finished"):
        train_stage2(stage2(pictures, run, tmp_path / "run", steps=1))
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_a_refiner_goes_on(pictures, vae, tmp_path):
    """Its checkpoints hold the prior too, which must not be taken for what is trained."""
    own = {"decoding": "global", "dim": 32, "num_classes": 2, "body": BLOCKS, "head": BLOCKS}
    train_stage2(stage2(pictures, vae, tmp_path / "prior", model=own, steps=1))
    refiner = {"prior": str(tmp_path / "prior"), "model": {**own, "condition": "codes"}, "steps": STEPS}
    for name, stops in (("whole", (None,)), ("pieces", (3, None))):
        for stop in stops:
            train_stage2(stage2(pictures, vae, tmp_path / name, **refiner, stop_after=stop))
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    assert same(weights(tmp_path / "pieces"), weights(tmp_path / "whole"))
    assert checkpoint.load(step(tmp_path / "whole", STEPS)).refiner is not None


# ------------------------------------------------------------------------------------------------------- position


def test_a_position_is_a_file_of_a_checkpoint(vae, tmp_path):
    saved = read_position(step(vae, STEPS))
    assert (saved.step, saved.seen, saved.broken) == (STEPS, 4 * STEPS, 0)
    assert saved.seconds > 0
    position = Position(3, 24, 1.5, "these", BrokenCount(2))
    position.save(tmp_path)
    assert asdict(read_position(tmp_path)) == {
        "step": 3,
        "seen": 24,
        "seconds": 1.5,
        "fingerprint": "these",
        "broken": 2,
    }
    other = Position(fingerprint="those")
    with pytest.raises(OtherRunError, match="data: expected the pictures that this run was started on"):
        other.go_to(read_position(tmp_path))
    (tmp_path / "position.json").write_text('{"step": "3"}')
    with pytest.raises(ValueError, match=r"position\.json\.step: expected an integer"):
        read_position(tmp_path)


def test_updates_are_counted_in_batches_of_another_size(tmp_path):
    assert more_updates(tmp_path, 8) == 0
    step(tmp_path, 10).mkdir(parents=True)
    Position(step=10, seen=40).save(step(tmp_path, 10))
    assert more_updates(tmp_path, 4) == 0
    assert more_updates(tmp_path, 8) == 5


# -------------------------------------------------------------------------------------------------------- records


def test_records_tell_where_and_how_fast(pictures, tmp_path):
    run = {"adversarial": 0.0, "steps": 6, "log_every": 2}
    train_stage1(stage1(pictures, tmp_path, **run, stop_after=4))
    train_stage1(stage1(pictures, tmp_path, **run))
    records = read_records(tmp_path / "losses.jsonl")[0]
    assert [(record["step"], record["epoch"]) for record in records] == [(2, 0.4), (4, 0.8), (6, 1.2)]
    assert list(records[0])[:4] == ["step", "epoch", "learning_rate", "loss"]
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(set(seconds))
    assert all(record["images_per_second"] > 0 for record in records)
    assert set(TIMES) <= set(records[0])


def test_the_pace_is_that_since_the_last_record():
    pace = Pace()
    pace.begin(100.0, 800)
    assert pace.measure(102.0, 840) == {"seconds": 102.0, "images_per_second": 20.0}
    assert pace.measure(103.0, 880) == {"seconds": 103.0, "images_per_second": 40.0}


# ------------------------------------------------------------------------------------------------------- schedule


def test_a_schedule_takes_no_more_than_its_place_from_a_checkpoint():
    def build(rate: float, decay: float):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate, weight_decay=decay)
        return optimizer, warmup_constant_lr(optimizer, warmup_steps=4)

    (first, running), (second, resumed) = build(1.0, 0.1), build(0.5, 0.2)
    for _ in range(2):
        first.step()
        running.step()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(json.loads(json.dumps(running.state_dict())))
    assert (second.param_groups[0]["lr"], second.param_groups[0]["weight_decay"]) == (0.375, 0.2)
    assert resumed.get_last_lr() == [0.375]
    resumed.step()
    assert second.param_groups[0]["lr"] == 0.5
