"""Activation checkpointing: the same gradients, dropout and all, and nothing of it outside of training."""

from __future__ import annotations

import pytest
import torch

from hqtvae_fast.config import BlocksConfig, TransformerConfig
from hqtvae_fast.model import HQTransformer, layers

BLOCKS = BlocksConfig(num_layers=2, num_heads=2, residual_dropout=0.2, attention_dropout=0.1)
CONFIG = TransformerConfig(
    dim=16, num_classes=3, codebook_sizes=(12, 12), side=2, iet_layers=1, max_positions=4, body=BLOCKS, head=BLOCKS
)


def codes() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(12, (3, side, side), generator=generator) for side in (2, 4)]


def gradients(on: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = HQTransformer(CONFIG).train().set_activation_checkpointing(on)
    torch.manual_seed(1)  # of the dropout
    logits = model(codes(), torch.tensor([0, 1, 2]))
    torch.stack([level.square().mean() for level in logits.levels]).sum().backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_gradients_are_the_same(monkeypatch):
    calls, original = [], layers.checkpoint
    monkeypatch.setattr(layers, "checkpoint", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    plain, recomputed = gradients(False), gradients(True)
    assert len(calls) == 2 + 2 + 1  # body, head, input embedding
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


@pytest.mark.parametrize("training", [True, False])
def test_inference_knows_nothing_of_it(monkeypatch, training):
    monkeypatch.setattr(layers, "checkpoint", None)
    model = HQTransformer(CONFIG).set_activation_checkpointing(True).train(training)
    with torch.set_grad_enabled(not training):  # either is enough
        assert model(codes(), torch.tensor([0, 1, 2])).levels[0].shape == (3, 4, 12)
