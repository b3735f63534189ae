"""The convolution with fewer multiplications against the plain one, and where it is taken."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import golden_pipeline, golden_values

from hqtvae_fast.backend import BackendError
from hqtvae_fast.model.autoencoder import Upsample
from hqtvae_fast.model.convolution import Conv3x3
from hqtvae_fast.ops import winograd_conv
from hqtvae_fast.ops.cpu_library import load
from hqtvae_fast.ops.kernels.conv3x3 import WINOGRAD, way
from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling
from hqtvae_fast.ops.kernels.winograd_conv import transform_weights, transforms
from hqtvae_fast.ops.kernels.winograd_conv.spec import SPEC, make_inputs, make_weights
from hqtvae_fast.ops.spec import Case
from hqtvae_fast.plan import Plan, site, using

CPU = torch.device("cpu")
BACKENDS = [
    pytest.param("native", marks=pytest.mark.skipif(load()[0] is None, reason=f"no compiled kernels: {load()[1]}")),
    "reference",
]
LIKE_THE_DECODERS = SPEC.cases[2]


def convolved(x, weight, bias, doubled):
    return F.conv2d(F.interpolate(x, scale_factor=2.0) if doubled else x, weight, bias, padding=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_small_cases(case, backend):
    inputs = make_inputs(case, CPU, 0)
    SPEC.check(SPEC.run(*inputs, backend=backend), SPEC.reference(*inputs), inputs)


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_in_fp64_it_is_the_plain_convolution(case):
    x, weight, bias = (tensor.double() for tensor in make_weights(case, CPU, 0))
    doubled = bool(case["doubled"])
    transformed = transform_weights(fold_upsampling(weight) if doubled else weight)
    got = winograd_conv(x, transformed, bias, doubled=doubled)
    torch.testing.assert_close(got, convolved(x, weight, bias, doubled), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("doubled,times", [(False, 1), (True, 4)])
def test_errors_beside_those_of_a_plain_convolution(backend, doubled, times):
    x, weight, bias = make_weights(LIKE_THE_DECODERS, CPU, 3)
    exact = convolved(x.double(), weight.double(), bias.double(), doubled)
    folded = fold_upsampling(weight) if doubled else weight
    got = winograd_conv(x, transform_weights(folded), bias, doubled=doubled, backend=backend)
    plain = (
        torch.ops.hqtvae_fast.upsample_conv(x, folded, bias, None, "reference")
        if doubled
        else F.conv2d(x, weight, bias, padding=1)
    )
    error, torchs = (float((y.double() - exact).abs().max()) for y in (got, plain))
    assert error <= times * torchs + 2**-20 * float(exact.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bound_holds_where_a_bias_is_small_beside_the_sums(backend):
    """A bias makes the largest output larger, not the errors: of 512 channels added in one chain, 9e-6 here."""
    case = Case("", {"B": 1, "C": 512, "H": 16, "W": 16, "N": 512, "doubled": 1})
    x, transformed, bias, doubled = make_inputs(case, CPU, 1)
    inputs = (x.mul_(10), transformed, bias, doubled)
    SPEC.check(SPEC.run(*inputs, backend=backend), SPEC.reference(*inputs), inputs)


def test_the_check_sees_a_wrong_constant():
    inputs = make_inputs(SPEC.small[1], CPU, 0)
    wrong = inputs[1].clone()
    wrong[7] *= 1.001
    with pytest.raises(AssertionError, match="off by"):
        SPEC.check(winograd_conv(inputs[0], wrong, inputs[2]), SPEC.reference(*inputs), inputs)


@pytest.mark.skipif(load()[0] is None, reason=f"no compiled kernels: {load()[1]}")
@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_neither_batch_nor_threads_change_a_bit(case):
    x, *rest = make_inputs(case, CPU, 1)
    threads = torch.get_num_threads()
    whole = SPEC.run(x, *rest, backend="native")
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(SPEC.run(x, *rest, backend="native"), whole)
            assert torch.equal(SPEC.run(x[-1:], *rest, backend="native"), whole[-1:])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("taps", [2, 3])
def test_matrices_are_those_of_a_short_convolution(taps):
    into, weights, outputs = transforms.matrices(taps)
    d, g = torch.randn(6).double(), torch.randn(taps).double()
    wanted = F.conv1d(d[None, None], g[None, None])[0, 0]
    torch.testing.assert_close(outputs @ ((weights @ g) * (into @ d)), wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", [SPEC.small[1], SPEC.small[4]], ids=lambda case: case.name)
def test_opcheck(case):
    torch.library.opcheck(torch.ops.hqtvae_fast.winograd_conv.default, (*make_inputs(case, CPU, 0), "reference"))


X, U, BIAS = torch.zeros(1, 32, 8, 8), torch.zeros(36, 2, 32, 16), torch.zeros(32)


@pytest.mark.parametrize(
    "inputs,message",
    [
        ((X[0], U, BIAS), r"x: expected \[B, C, H, W\], none of them 0; got \[32, 8, 8\]"),
        ((X, U, BIAS[:20]), r"expected C a multiple of 16, bias \[N\], N a multiple of 32; got .* and \[20\]"),
        ((X, U[:, :1], BIAS), r"transformed: expected \[36, 2, 32, 16\]; got \[36, 1, 32, 16\]"),
        ((X, U.double(), BIAS), "expected fp32 or fp64 throughout; got torch.float32, torch.float64"),
    ],
)
def test_refusals(inputs, message):
    with pytest.raises(ValueError, match=message):
        winograd_conv(*inputs)


def test_the_kernel_says_why_not():
    with pytest.raises(BackendError, match=r"expected channels-last memory; got strides \(2048, 64, 8, 1\)"):
        winograd_conv(X, U, BIAS, backend="native")


# ------------------------------------------------------------------------------------------------------- in the decoder


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 32, 16, 16).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def calls(monkeypatch) -> list[bool]:
    """Whether each call was of a doubled map."""
    seen = []

    def run(*arguments, doubled=False):
        seen.append(doubled)
        return winograd_conv(*arguments, doubled=doubled)

    monkeypatch.setattr("hqtvae_fast.model.convolution.winograd_conv", run)
    return seen


@pytest.mark.skipif(load()[0] is None, reason=f"no compiled kernels: {load()[1]}")
def test_layers_take_it_for_inference_in_fp32_alone(x, calls, monkeypatch):
    conv, upsample = Conv3x3(32, 32).requires_grad_(False), Upsample(32).requires_grad_(False).eval()
    upsample.fold()
    plain = [conv(x), upsample(x)]  # gradients are on
    assert calls == []
    with torch.no_grad():
        for got, wanted in zip((conv(x), upsample(x)), plain, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        assert calls == [False, True]
        conv(x.contiguous())
        conv(x[:, :, :1])
        conv.double()(x.double())
        with torch.autocast("cpu"):
            upsample(x)
        monkeypatch.setenv("HQTVAE_BACKEND", "reference")
        upsample(x)
    assert calls == [False, True]


@pytest.mark.skipif(load()[0] is None, reason=f"no compiled kernels: {load()[1]}")
def test_changed_weights_are_transformed_again(x):
    conv = Conv3x3(32, 32)
    with torch.no_grad():
        first = conv(x)
        made = conv._transformed.value
        assert made is not None
        assert torch.equal(conv(x), first)
        assert conv._transformed.value is made
        conv.weight.mul_(2)
        torch.testing.assert_close(conv(x) - conv.bias[:, None, None], 2 * (first - conv.bias[:, None, None]))


def test_a_cast_or_a_copy_forgets_them():
    conv = Conv3x3(32, 32)
    made = conv._transformed.of(lambda: transform_weights(conv.weight), conv.weight)
    assert copy.deepcopy(conv)._transformed.value is None
    assert conv._transformed.value is made
    assert conv.double().float()._transformed.value is None


@pytest.mark.skipif(load()[0] is None, reason=f"no compiled kernels: {load()[1]}")
@pytest.mark.parametrize("name", ["class_parallel", "class_level3"])
def test_golden_reconstructions_with_it_and_without(name, calls, monkeypatch):
    vae, golden = golden_pipeline(name).vae, golden_values(name)
    keys = ["codes_top", "codes_bottom"] if "codes_top" in golden else ["codes_0", "codes_1", "codes_2"]
    codes = [golden[key] for key in keys]
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(codes), golden["recon"], rtol=0, atol=1e-4)
        assert True in calls
        assert False in calls
        count = len(calls)
        monkeypatch.setenv("HQTVAE_BACKEND", "reference")
        torch.testing.assert_close(vae.decode(codes), golden["recon"], rtol=0, atol=1e-4)
    assert len(calls) == count


def test_small_maps_are_not_worth_their_tiles(x):
    with torch.no_grad():
        weight, bias = torch.zeros(32, x.shape[1], 3, 3), torch.zeros(32)
        assert (way(x, weight, bias) == WINOGRAD) == (load()[0] is not None)
        assert way(x[:, :, :2, :2].contiguous(memory_format=torch.channels_last), weight, bias) != WINOGRAD
        assert way(x, weight[:3], bias[:3]) != WINOGRAD


@pytest.mark.skipif(load()[0] is None, reason=f"no compiled kernels: {load()[1]}")
def test_a_plan_decides(x, calls):
    conv = Conv3x3(x.shape[1], 32)
    with torch.no_grad():
        conv(x)
        assert calls == [False]
        plans = {
            name: Plan(choices={site("conv3x3", (x, conv.weight, conv.bias, False, None)): name}) for name in NAMES
        }
        for name, times in (("reference", 1), ("native", 2)):
            with using(plans[name]):
                conv(x)
            assert len(calls) == times


NAMES = ("reference", "native")
