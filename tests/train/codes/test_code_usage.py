"""Code usage, on counts whose answer is plain."""

from __future__ import annotations

import pytest
import torch

from hqtvae_fast.train.codes.usage import RECENT, RecentCodes, perplexity


def test_perplexity():
    assert float(perplexity(torch.full((8,), 5))) == pytest.approx(8)
    assert float(perplexity(torch.tensor([3, 0, 0, 0]))) == pytest.approx(1)
    assert float(perplexity(torch.tensor([2.0, 2.0, 0.0]))) == pytest.approx(2)
    assert float(perplexity(torch.zeros(4))) == pytest.approx(1)


def test_codes_in_use_are_those_that_recent_updates_chose():
    recent, nothing = RecentCodes([4, 2], torch.device("cpu")), torch.zeros(4)
    assert float(recent.add(0, torch.tensor([5.0, 0.0, 0.0, 0.1]))) == 0.5
    assert float(recent.add(0, torch.tensor([0.0, 0.0, 9.0, 0.0]))) == 0.75
    assert float(recent.add(1, torch.zeros(2))) == 0.0
    later = [float(recent.add(0, nothing)) for _ in range(RECENT)]
    assert later[-3:] == [0.75, 0.25, 0.0]


def test_codes_in_use_are_known_after_a_break():
    whole, pieces = (RecentCodes([8], torch.device("cpu")) for _ in range(2))
    for update in range(130):
        counts = (torch.arange(8) == update % 11).float()
        if update == 70:
            other = RecentCodes([8], torch.device("cpu"))
            other.load_state_dict(pieces.state_dict())
            pieces = other
        assert whole.add(0, counts) == pieces.add(0, counts)


def test_a_restarted_code_that_nothing_chooses_is_not_in_use(tmp_path):
    """One picture of one colour has one code, however many others are given new vectors."""
    pytest.importorskip("accelerate", reason="training needs the train extra")
    from PIL import Image
    from small_runs import losses, stage1

    from hqtvae_fast.train.run import train_stage1

    (tmp_path / "pictures").mkdir()
    for index in range(4):
        Image.new("RGB", (16, 16), (200, 30, 30)).save(tmp_path / "pictures" / f"{index}.png")
    changes = {"validation": "none", "restart_unused": True, "adversarial": 0.0}
    train_stage1(stage1(tmp_path / "pictures", tmp_path / "out", **changes))
    assert all(record["usage_0"] < 1 for record in losses(tmp_path / "out"))
