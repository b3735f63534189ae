"""Folded upsampling equals doubling and convolving, borders included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.model.autoencoder import Upsample
from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), channels=st.integers(1, 6), height=st.integers(1, 7), width=st.integers(1, 7))
def test_folded_equals_plain(batch, channels, height, width):
    torch.manual_seed(0)
    layer, x = Upsample(channels).double(), torch.randn(batch, channels, height, width, dtype=torch.float64)
    with torch.no_grad():
        plain = layer(x)
        layer.fold()
        folded = layer(x)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-12)


def test_every_weight_is_used_once_a_phase():
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    folded = fold_upsampling(weight)
    assert folded.shape == (8, 3, 2, 2)
    for phase in folded.chunk(4):
        torch.testing.assert_close(phase.sum(dim=(2, 3)), weight.sum(dim=(2, 3)))


def test_training_forgets_the_fold_and_gradients_take_the_plain_path():
    layer, x = Upsample(4).eval(), torch.randn(1, 4, 3, 3)
    layer.fold()
    layer(x).sum().backward()
    assert layer.conv.weight.grad is not None
    layer.train()
    assert layer.folded is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_costs_no_accuracy(dtype):
    torch.manual_seed(1)
    layer, x = Upsample(32).eval(), torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        exact = layer.double()(x.double())
        layer.float().fold()
        folded = layer.to(dtype)(x.to(dtype)).double()
        assert layer.folded is not None
        layer.folds = False
        plain = layer(x.to(dtype)).double()
    assert float((folded - exact).abs().max()) <= 2 * float((plain - exact).abs().max()) + 1e-6
