"""The decoder's convolutions in 8 bits: the definition, oneDNN beside it, and the layers that are calibrated."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from hqtvae_fast.backend import BackendError, choose
from hqtvae_fast.model.autoencoder import Upsample
from hqtvae_fast.model.calibration import best_span
from hqtvae_fast.model.convolution import Conv3x3
from hqtvae_fast.ops.kernels.conv3x3 import BACKENDS, INT8, Int8Conv, int8, onednn, way
from hqtvae_fast.ops.kernels.conv3x3.spec import SPEC
from hqtvae_fast.plan import Plan, site, using

CPU = torch.device("cpu")
CALIBRATED = [case for case in SPEC.small if case.sizes.get("calibrated")]


def small_inputs(case):
    """No sum of two products leaves 16 bits, at which a processor without VNNI saturates: numbers 0 to 128."""
    x, weight, bias, doubled, _ = SPEC.make_inputs(case, CPU, 0)
    low, high = torch.aminmax(x.float())
    return x, weight, bias, doubled, torch.stack([low, 2 * high - low])


@pytest.mark.parametrize("case", CALIBRATED, ids=lambda case: case.name)
def test_onednn_gives_the_sums_of_whole_numbers(case):
    inputs = small_inputs(case)
    got, wanted = onednn.conv3x3(*inputs), int8.conv3x3(*inputs)
    assert got.dtype == wanted.dtype == case.dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    SPEC.check(got, SPEC.reference(*inputs), inputs)
    off = (got.double() - wanted.double()).abs().max() / wanted.double().abs().max()
    assert float(off) <= torch.finfo(case.dtype).eps + 2**-20


@pytest.mark.parametrize("case", CALIBRATED, ids=lambda case: case.name)
def test_the_definition_is_near_the_convolution(case):
    inputs = SPEC.make_inputs(case, CPU, 1)
    exact = SPEC.reference(*inputs)
    error = (int8.conv3x3(*inputs).double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 1e-4 < float(error) < 2e-2


def test_the_check_sees_a_wrong_scale_and_numbers_cut_off():
    inputs = small_inputs(CALIBRATED[0])
    right = int8.conv3x3(*inputs)
    SPEC.check(right, SPEC.reference(*inputs), inputs)
    for span in (1.001 * inputs[-1], torch.stack([0 * inputs[-1][0], inputs[-1][1]])):
        with pytest.raises(AssertionError):
            SPEC.check(int8.conv3x3(*inputs[:-1], span), SPEC.reference(*inputs), inputs)


def test_a_span_leaves_out_what_is_rare():
    counts = torch.full((1000,), 100.0, dtype=torch.float64)
    assert torch.equal(best_span(counts, -1.0, 3.0), torch.tensor([-1.0, 3.0]))
    counts[400:] = 0.0
    counts[-1] = 1e-3
    low, high = best_span(counts, -1.0, 3.0).tolist()
    assert low == pytest.approx(-1.0, abs=0.05)
    assert high == pytest.approx(0.6, abs=0.1)


def test_why_not(monkeypatch):
    x, weight, bias, doubled, span = small_inputs(CALIBRATED[0])
    monkeypatch.setattr(onednn, "cpu_features", lambda: ("AVX2",))
    assert "saturate" in onednn.why_not(x, weight, bias, doubled, span)
    with pytest.raises(BackendError, match="saturate"):
        choose("conv3x3", BACKENDS, x, weight, bias, doubled, span, backend=INT8)
    monkeypatch.setattr(onednn, "cpu_features", lambda: ("AVX512-VNNI",))
    assert onednn.why_not(x, weight, bias, doubled, span) is None
    assert "calibrated" in onednn.why_not(x, weight, bias, doubled, None)
    assert "fp32 or bf16" in onednn.why_not(x.half(), weight, bias, doubled, span)


@pytest.mark.parametrize("doubled", [False, True])
def test_a_plan_takes_a_calibrated_layer_in_8_bits(doubled, monkeypatch):
    monkeypatch.setattr(onednn, "cpu_features", lambda: ("AVX512-VNNI",))
    case = next(case for case in CALIBRATED if case["doubled"] == doubled)
    x, _, _, _, span = small_inputs(case)
    layer = Upsample(case["C"]) if doubled else Conv3x3(case["C"], case["N"])
    if doubled:
        layer.fold()
    layer.eval()
    with torch.inference_mode():
        conv = layer.conv if doubled else layer
        weight = layer.folded if doubled else conv.weight
        where = site("conv3x3", (x, weight, conv.bias, doubled, span))
        plan = Plan("tuned", {where: INT8})
        plain = layer(x)
        with using(plan):
            assert torch.equal(layer(x), plain)  # not calibrated
        layer.span = span
        assert torch.equal(layer(x), plain)  # by a plan alone
        with using(plan):
            eight = layer(x)
            assert way(x, weight, conv.bias, span, doubled=doubled) == INT8
            assert torch.equal(copy.deepcopy(layer)(x), eight)
        assert torch.equal(eight, Int8Conv(weight, conv.bias, doubled, span)(x))
        assert 0 < F.mse_loss(eight, plain) < 1e-3
        conv.weight.mul_(2)
        with using(plan):
            assert not torch.equal(layer(x), eight)
    layer.train()
    assert layer.span is None
