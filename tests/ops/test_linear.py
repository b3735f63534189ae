"""Packed linear layers give the plain ones' results, and forget the packing when the weight changes."""

from __future__ import annotations

import copy

import pytest
import torch

from hqtvae_fast.ops.linear import Linear, can_pack, pack_linears
from hqtvae_fast.ops.linear import memory as pages

DTYPES = [torch.float32, torch.bfloat16]


def packed_layer(dtype):
    torch.manual_seed(0)
    layer = Linear(48, 80).to(dtype).eval()
    if not can_pack(layer.weight):
        pytest.skip(f"oneDNN does not compute in {dtype} on this processor")
    return pack_linears(layer)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 8, 33])
def test_packed_equals_plain(dtype, rows):
    layer, x = packed_layer(dtype), torch.randn(rows, 3, 48).to(dtype)
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()).detach()
    with torch.inference_mode():
        packed, gelu = layer(x), layer.gelu(x)
        layer.unpack()
        plain = layer(x)
    bound = 2 * float((plain.double() - exact).abs().max()) + 1e-5
    assert float((packed.double() - exact).abs().max()) <= bound
    assert float((gelu.double() - torch.nn.functional.gelu(exact)).abs().max()) <= 2 * bound


def test_a_changed_weight_is_not_hidden_by_the_packed_one():
    layer, x = packed_layer(torch.float32), torch.randn(4, 48)
    layer.load_state_dict({name: torch.zeros_like(value) for name, value in layer.state_dict().items()})
    with torch.inference_mode():
        assert not layer(x).any()
    layer = packed_layer(torch.float32)
    assert layer._packed is not None
    assert layer.train()._packed is None
    assert packed_layer(torch.float32).double()._packed is None


def test_gradients_and_copies_take_the_plain_weight():
    layer = packed_layer(torch.float32)
    layer(torch.randn(2, 48)).sum().backward()
    assert layer.weight.grad is not None
    assert copy.deepcopy(layer)._packed is None


def test_intervals():
    taken = [(10, 20), (30, 40)]
    assert list(pages._without([(0, 50)], taken)) == [(0, 10), (20, 30), (40, 50)]
    assert list(pages._without([(12, 18), (35, 45)], taken)) == [(40, 45)]
    assert list(pages._without([(20, 30)], taken)) == [(20, 30)]


def test_large_weights_survive_the_change_of_pages(monkeypatch):
    monkeypatch.setattr(pages, "WORTH_IT", 1 << 20)
    asked = []
    original = pages._collapse
    monkeypatch.setattr(pages, "_collapse", lambda start, end: asked.append((start, end)) or original(start, end))
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Linear(2048, 2048) for _ in range(4))).eval()
    x = torch.randn(2, 2048)
    with torch.inference_mode():
        plain = model(x)
        packed = pack_linears(model)(x)
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)
    if pages._MAPS.exists():
        assert asked
