"""The optimisers: on a CPU in one pass, with the numbers that torch's own loop gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hqtvae_fast import checkpoint
from hqtvae_fast.train.loop.optim import fused, stage1_optimizer


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
    from benchmarks.suites.train import make_task

    task = make_task(stage, "tiny", torch.device("cpu"), "no", checkpointing=False)
    assert all(group["fused"] for group in task.optimizer.param_groups)


@pytest.mark.parametrize("how", [True, None])
def test_its_writes_are_counted(how):
    """By their versions what was made of weights, for decoding say, is known to be out of date."""
    model = nn.Linear(4, 4)
    optimizer = stage1_optimizer(model, 1e-2, fused=how)
    model(torch.ones(1, 4)).sum().backward()
    before = model.weight._version
    optimizer.step()
    assert model.weight._version > before


@pytest.mark.parametrize("stage", [1, 2])
def test_a_model_in_training_is_judged_as_the_same_model_opened(stage, tmp_path):
    """What was made of its weights in the first validation is not what is judged in the next."""
    from benchmarks.suites.train import make_batch, make_task

    task = make_task(stage, "tiny", torch.device("cpu"), "no", checkpointing=False)
    model = task.vae if stage == 1 else task.transformer
    batch = make_batch("tiny", 2, torch.device("cpu"))
    for group in task.optimizer.param_groups:
        group["lr"] = 1e-2
    task.schedule.base_lrs = [1e-2 for _ in task.schedule.base_lrs]

    def judged(module):
        module.eval()
        with torch.no_grad():
            if stage == 1:
                return module.decode(module.encode(batch.images))
            codes = task.vae.encode(batch.images)
            return module(codes, task._condition(batch, list(codes))).levels[0]

    judged(model)
    model.train()
    for step in range(3):
        task.update([batch], step)
    found = judged(model)
    task.save(tmp_path / "model")
    opened = checkpoint.load(tmp_path / "model")
    assert torch.allclose(found, judged(opened.vae if stage == 1 else opened.transformer), atol=1e-4)
