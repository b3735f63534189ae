"""Training on what people have: a folder of a few pictures, of which every one counts."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import losses, stage1, weights
from small_sets import picture, write_folder

from hqtvae_fast.train.run import train_stage1


@pytest.mark.parametrize("workers", [0, 1])
def test_T1_fewer_pictures_than_a_batch(tmp_path, workers):
    files = {f"{index}.png": picture(index) for index in range(3)}
    run = stage1(write_folder(tmp_path / "set", files), tmp_path / "run", steps=2, workers=workers)
    train_stage1(run)
    assert weights(tmp_path / "run")
    assert [row["epoch"] for row in losses(tmp_path / "run")] == pytest.approx([4 / 3, 8 / 3])
