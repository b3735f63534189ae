"""What does not depend on the number of processes: losses, weights, validation, a shared cache of codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import BLOCKS, COMMON, TRANSFORMER, VAE, losses, stage1, weights, write_pictures
from two_processes import train_by_one_and_by_two

from hqtvae_fast.train.run import train_stage1
from hqtvae_fast.train.words import HELD_OUT


@pytest.fixture(scope="module")
def by_one_and_by_two(tmp_path_factory) -> Path:
    """Runs of the same global batch. No dropout, whose masks differ by rank."""
    root = tmp_path_factory.mktemp("processes")
    pictures, squares = write_pictures(root / "pictures"), write_pictures(root / "squares", (20, 20))
    train_stage1(stage1(pictures, root / "vae"))
    still = {**BLOCKS, "residual_dropout": 0.0}
    # Adam's first updates turn rounding into whole steps: a small rate keeps the two runs near each other.
    first = {**COMMON, "data": str(pictures), "steps": 4, "learning_rate": 1e-4, "model": VAE}
    second = {**first, "model": {**TRANSFORMER, "body": still, "head": still}, "vae": str(root / "vae" / "model")}
    validated = {"validation": str(pictures), "validation_pictures": 5, "validate_every": 1}
    runs = {
        "stage1": {**first, **validated, "discriminator_channels": 32, "restart_unused": True},
        "stage2": {**second, **validated},
        "stage2 cached": {**second, "data": str(squares), "steps": 3},  # their centre is all there is to crop
    }
    cached = {"code_cache": str(root / "codes"), "activation_checkpointing": True}
    return train_by_one_and_by_two(runs, root, {"stage2 cached": cached})


def held_out(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith(HELD_OUT)}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_processes_equal_one(by_one_and_by_two, stage):
    """Losses and codebooks within 1e-5."""
    runs = by_one_and_by_two / stage
    for one, two in zip(losses(runs / "1"), losses(runs / "2"), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items() if one["step"] == 1 else (one.items() - held_out(one).items()):
            assert two[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (one["step"], name)
    one, two = weights(runs / "1"), weights(runs / "2")
    apart = {key: (two[key] - value).abs() > 1e-5 for key, value in one.items()}
    assert not any(bool(far.any()) for key, far in apart.items() if "codebooks" in key)
    # A weight whose gradient is nothing but rounding may go a whole update either way, 2e-4 apart: 0.1% were seen to.
    assert all(float((two[key] - value).abs().max()) < 2e-4 for key, value in one.items())
    assert float(torch.cat([far.flatten() for far in apart.values()]).float().mean()) < 5e-3


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_processes_validate_as_one(by_one_and_by_two, stage):
    """After the first update; the weights of later ones differ by what Adam makes of rounding."""
    runs = by_one_and_by_two / stage
    one, two = (held_out(losses(runs / count)[0]) for count in ("1", "2"))
    assert one.keys() == two.keys() != set()
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


def test_two_processes_share_a_cache(by_one_and_by_two):
    """And one has none."""
    runs = by_one_and_by_two / "stage2 cached"
    assert (by_one_and_by_two / "codes").is_file()
    for one, two in zip(losses(runs / "1"), losses(runs / "2"), strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5)
