"""The optimisers: on a CPU in one pass, with the numbers that torch's own loop gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hqtvae_fast.train.optim import fused, stage1_optimizer


def test_fused_on_a_cpu_and_torchs_choice_elsewhere():
    assert fused(torch.device("cpu")) is True
    assert fused(torch.device("cuda")) is None


def test_one_pass_gives_what_many_do():
    found = []
    for how in (True, None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
        optimizer = stage1_optimizer(model, 1e-2, fused=how)
        for step in range(5):
            model(torch.linspace(-1, 1, 24).view(3, 8) * (step + 1)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(torch.cat([value.detach().flatten() for value in model.parameters()]))
    assert torch.allclose(*found, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found[0], torch.zeros_like(found[0]))


@pytest.mark.parametrize("stage", [1, 2])
def test_both_stages_train_so(stage):
    from benchmarks.train import make_task

    task = make_task(stage, "tiny", torch.device("cpu"), "no", checkpointing=False)
    assert all(group["fused"] for group in task.optimizer.param_groups)
