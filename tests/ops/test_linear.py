"""Packed linear layers give the plain ones' results, and forget the packing when the weight changes."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.model import huge_pages as pages
from hqtvae_fast.model.linear import Linear, pack_linears
from hqtvae_fast.ops import cpu_library
from hqtvae_fast.ops.kernels.packed_linear import native, onednn, pack_weight

DTYPES = [torch.float32, torch.bfloat16]


def packed_layer(dtype):
    torch.manual_seed(0)
    layer = Linear(48, 96).to(dtype).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "SMALL", 0)
        pack_linears(layer)
    if layer._packed.value is None:
        pytest.skip(f"no kernel wants a packed weight here: {onednn.why_not(layer.weight)}")
    return layer


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
    assert layer._packed.value is not None
    assert layer.train()._packed.value is None
    assert packed_layer(torch.float32).double()._packed.value is None


def test_gradients_and_copies_take_the_plain_weight():
    layer = packed_layer(torch.float32)
    layer(torch.randn(2, 48)).sum().backward()
    assert layer.weight.grad is not None
    assert copy.deepcopy(layer)._packed.value is None


needs_native = pytest.mark.skipif(
    cpu_library.why_not_bf16() is not None, reason=f"kernels for AVX512-BF16: {cpu_library.why_not_bf16()}"
)


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 35),
    inputs=st.integers(1, 100).map(lambda half: 2 * half),
    panels=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_native_kernel_within_its_bound(rows, inputs, panels, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator).bfloat16()
    weight = torch.randn(panels * native.PANEL, inputs, generator=generator).bfloat16()
    shift = torch.randn(len(weight), generator=generator).bfloat16() if bias else None
    packed = native.NativeWeight(weight)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if shift is None else shift.double())
    size = x.double().abs() @ weight.double().abs().T + (0 if shift is None else shift.double().abs())
    bound = 2.0**-8 * exact.abs() + inputs * 2.0**-23 * size
    assert ((packed.linear(x, shift).double() - exact).abs() <= bound).all()
    gelu = torch.nn.functional.gelu(exact)  # its slope is below 1.13
    assert ((packed.gelu(x, shift).double() - gelu).abs() <= 2.0**-8 * gelu.abs() + 1.13 * bound).all()


@needs_native
def test_native_gelu_over_its_range():
    packed = native.NativeWeight(torch.eye(32).bfloat16())
    x = torch.linspace(-12, 12, 32 * 500).bfloat16().view(-1, 32)
    exact = torch.nn.functional.gelu(x.double())
    assert ((packed.gelu(x, None).double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-6 * x.abs()).all()


@needs_native
def test_native_rows_do_not_depend_on_each_other():
    torch.manual_seed(0)
    packed, x = native.NativeWeight(torch.randn(64, 130).bfloat16()), torch.randn(37, 130).bfloat16()
    together = packed.gelu(x, None)
    assert torch.equal(together, torch.cat([packed.gelu(row, None) for row in x.split(1)]))
    assert torch.equal(together, torch.cat([packed.gelu(part, None) for part in x.split(5)]))


@needs_native
def test_native_operator():
    torch.manual_seed(0)
    packed = native.NativeWeight(torch.randn(64, 6).bfloat16()).packed
    x, bias = torch.randn(3, 2, 6).bfloat16(), torch.randn(64).bfloat16()
    for arguments in ((packed, x, bias, True), (packed, x.transpose(0, 1), None, False)):
        torch.library.opcheck(torch.ops.hqtvae_fast.linear_bf16.default, arguments)


@needs_native
def test_who_packs_what(monkeypatch):
    assert isinstance(pack_weight(torch.zeros(64, 48).bfloat16()), native.NativeWeight)
    for shape in ((80, 48), (64, 47)):  # not in panels, or not in pairs
        assert isinstance(pack_weight(torch.zeros(shape).bfloat16()), onednn.OneDNNWeight)
        with pytest.raises(ValueError, match="outputs in 32s and an even number of inputs"):
            native.NativeWeight(torch.zeros(shape).bfloat16())
    assert isinstance(pack_weight(torch.zeros(512, 256)), onednn.OneDNNWeight)
    assert pack_weight(torch.zeros(64, 48)) is None  # small: torch's product of plain rows is faster
    monkeypatch.setattr(cpu_library, "load", lambda: (None, "not built"))
    assert isinstance(pack_weight(torch.zeros(64, 48).bfloat16()), onednn.OneDNNWeight)


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
