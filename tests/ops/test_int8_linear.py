"""Products of 8-bit numbers: the reference's bits with either instruction set, in any threads and beside any rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.backend import BackendError
from hqtvae_fast.model.linear import Linear, pack_linears, quantize_linears
from hqtvae_fast.ops import int8_linear
from hqtvae_fast.ops.kernels.int8_linear import native, pack, reference
from hqtvae_fast.ops.kernels.int8_linear.spec import SMALL_CASES, SPEC, make_inputs
from hqtvae_fast.ops.kernels.packed_linear.int8 import Int8Weight
from hqtvae_fast.ops.kernels.skinny_linear.reference import quantize

CPU = torch.device("cpu")
BEST = native.instructions()
needs_native = pytest.mark.skipif(not BEST, reason=f"kernels: {native.why_not_pack(torch.zeros(1, dtype=torch.int8))}")
instructions = st.sampled_from(range(1, BEST + 1) if BEST else [1])


def numbers(rows, outputs, inputs, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (outputs, inputs), generator=generator).to(torch.int8)
    x = torch.randn(rows, inputs, generator=generator) * torch.randn(rows, 1, generator=generator).exp()
    scale = torch.rand(outputs, generator=generator) + 1e-3
    return (x + torch.randn(rows, 1, generator=generator)).to(dtype), weight, scale


@needs_native
@settings(max_examples=80, deadline=None)
@given(
    rows=st.one_of(st.integers(0, 21), st.integers(60, 70)),
    outputs=st.integers(1, 50),
    inputs=st.one_of(st.integers(1, 200), st.integers(250, 600)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.booleans(),
    using=instructions,
    seed=st.integers(0, 2**31),
)
def test_the_bits_of_the_reference(rows, outputs, inputs, dtype, bias, using, seed):
    x, weight, scale = numbers(rows, outputs, inputs, seed, dtype)
    shift = x.new_ones(outputs).cumsum(0) / 3 if bias else None
    got = native.int8_linear(x, weight, scale, shift, *native.pack(weight, scale, using), False, using)
    assert torch.equal(got, reference.int8_linear(x, weight, scale, shift))


@needs_native
@pytest.mark.parametrize("using", range(1, BEST + 1))
def test_the_largest_sums(using):
    """255 times 127 in every place does not saturate."""
    for sign in (1, -1):
        weight, scale = torch.full((17, 200), 127 * sign, dtype=torch.int8), torch.ones(17)
        x = torch.full((3, 200), 255.0)  # scale 1, zero 0
        got = native.int8_linear(x, weight, scale, None, *native.pack(weight, scale, using), False, using)
        assert torch.equal(got, torch.full((3, 17), float(255 * 127 * 200 * sign)))


@needs_native
@pytest.mark.parametrize("using", range(1, BEST + 1))
def test_neither_rows_nor_threads_matter(using):
    x, weight, scale = numbers(37, 100, 130, 0)
    panels = native.pack(weight, scale, using)

    def run(part):
        return native.int8_linear(part, weight, scale, None, *panels, True, using)

    together, threads = run(x), torch.get_num_threads()
    for size in (1, 4, 5, 8):
        assert torch.equal(together, torch.cat([run(part) for part in x.split(size)]))
    try:
        torch.set_num_threads(3 if threads == 1 else 1)
        assert torch.equal(together, run(x))
    finally:
        torch.set_num_threads(threads)


def test_rounding():
    rows = [[0.0, 0.0, 0.0], [0.0, 1.0, 255.0], [-255.0, 0.0, -3.0], [-1.0, 0.0, 254.0], [5.0, 6.0, 7.0]]
    u, scale, zero = reference.round_groups(torch.tensor(rows))
    assert u[:, 0, :3].tolist() == [[0, 0, 0], [0, 1, 255], [0, 255, 252], [0, 1, 255], [182, 219, 255]]
    assert zero.flatten().tolist() == [0, 0, 255, 1, 0]
    assert ((u.float() - zero) * scale)[:, 0, :3].sub(torch.tensor(rows)).abs().max() <= scale.max() / 2


@settings(max_examples=50, deadline=None)
@given(inputs=st.integers(1, 200), seed=st.integers(0, 2**31))
def test_rounding_is_to_the_nearest(inputs, seed):
    x, _, _ = numbers(4, 1, inputs, seed)
    u, scale, zero = reference.round_groups(x)
    back = ((u.float() - zero) * scale).flatten(1)[:, :inputs]
    step = scale.expand(-1, -1, reference.GROUP).flatten(1)[:, :inputs]
    assert ((back - x).abs() <= 1.0001 * step).all()  # half a step, and half of one since zero is rounded too


@needs_native
@pytest.mark.parametrize("strange", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 64, 75])
def test_what_is_not_finite_stays_so(strange, place):
    x, weight, scale = numbers(3, 20, 76, 0)
    x[1, place] = strange
    for backend in ("native", "reference"):
        y = int8_linear(x, weight, scale, panels=pack(weight, scale), backend=backend)
        assert y.isnan().all(dim=1).tolist() == [False, True, False], backend


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_operator(case):
    x, weight, scale, bias, panels, gelu = make_inputs(case, CPU, 0)
    backends = ["reference"] if panels is None else ["native", "reference"]
    for backend in backends:
        arguments = (x, weight, scale, bias, *(panels or (None,) * 3), gelu, backend)
        torch.library.opcheck(torch.ops.hqtvae_fast.int8_linear.default, arguments)
        inputs = make_inputs(case, CPU, 1)
        SPEC.check(SPEC.run(*inputs, backend=backend), SPEC.reference(*inputs), inputs)


def test_the_check_can_fail():
    inputs = make_inputs(SMALL_CASES[0], CPU, 0)
    wanted = SPEC.reference(*inputs)
    with pytest.raises(AssertionError, match="differ"):
        SPEC.check(torch.nextafter(wanted, wanted + 1), wanted, inputs)


X, W, S = torch.zeros(2, 8), torch.zeros(3, 8, dtype=torch.int8), torch.ones(3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((X[:, :4], W, S), r"expected \[..., K\] and \[N, K\], K not 0"),
        ((X.double(), W, S), "x: expected fp32 or bf16; got torch.float64"),
        ((X, W.float(), S), "weight: expected torch.int8"),
        ((X, W, S[:2]), r"scale: expected torch.float32 \[3\]"),
        ((X, W, S, torch.zeros(4)), r"bias: expected torch.float32 \[3\]"),
    ],
)
def test_bad_inputs(arguments, message):
    with pytest.raises(ValueError, match=message):
        int8_linear(*arguments)


def test_the_kernel_wants_a_packed_weight():
    with pytest.raises(BackendError, match="expected a packed weight"):
        int8_linear(X, W, S, backend="native")


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantized_layer_takes_it(dtype):
    torch.manual_seed(0)
    layer = pack_linears(quantize_linears(Linear(48, 96))).to(dtype).eval()
    pack_linears(layer)
    packed, x = layer._packed.value, torch.randn(5, 48).to(dtype)
    assert isinstance(packed, Int8Weight)
    stored, scale = layer.streamed
    with torch.inference_mode():
        assert torch.equal(layer(x), int8_linear(x, stored, scale, layer.bias, backend="reference"))
        exact = torch.nn.functional.gelu(reference.int8_linear(x.float(), stored, scale, layer.bias.float()))
        assert torch.allclose(layer.gelu(x).float(), exact, atol=2e-6, rtol=2 * torch.finfo(dtype).eps)
    before = scale.clone()
    with torch.no_grad():
        layer.weight.mul_(2)  # a changed weight is rounded and laid out again
    pack_linears(layer)
    assert torch.allclose(scale, 2 * before, rtol=torch.finfo(dtype).eps)
    with torch.inference_mode():
        assert torch.equal(layer(x), int8_linear(x, stored, scale, layer.bias, backend="reference"))


def test_other_kinds_stay_as_they_are():
    layer = pack_linears(quantize_linears(Linear(48, 96), "fp8"))
    assert not isinstance(layer._packed.value, Int8Weight)
    weight, scale = quantize(torch.randn(4, 8), "int8")
    assert int8_linear(torch.randn(2, 8), weight, scale, backend="reference").shape == (2, 4)
