"""Products of 8-bit numbers on tensor cores: how rows are rounded, whose sums are exact, and who can take what."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import quantized_linear
from hqtvae_fast.ops.kernels.quantized_linear import reference, triton
from hqtvae_fast.ops.kernels.quantized_linear import torch as library
from hqtvae_fast.ops.kernels.quantized_linear.spec import CASES, SMALL_CASES, SPEC, make_inputs
from hqtvae_fast.ops.kernels.skinny_linear.reference import quantize
from hqtvae_fast.tune.cases import fitted

CPU, FP8 = torch.device("cpu"), torch.float8_e4m3fn
KINDS = {"int8": torch.int8, "fp8": FP8}
EXACT = ("torch/int_mm", "torch", "reference")


def run(x, weight, scale, bias=None, *, residual=None, gelu="none", backend):
    """The op, or the function of a backend that is for GPUs alone and runs here too."""
    if backend == "torch/int_mm":
        return library.int_mm(x, weight, scale, bias, residual, gelu)
    return quantized_linear(x, weight, scale, bias, residual=residual, gelu=gelu, backend=backend)


def numbers(rows, outputs, inputs, seed, dtype=torch.float32, kind="int8"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator) * torch.randn(rows, 1, generator=generator).mul(1.5).exp()
    weight, scale = quantize(torch.randn(outputs, inputs, generator=generator), kind)
    return x.to(dtype), weight, scale


def test_rows_of_int8_are_rounded_to_the_nearest_with_ties_to_even():
    rows = torch.tensor([[127.0, 0.5, 1.5, -2.5, -126.6], [-254.0, 1.0, 3.0, 0.0, 2.2]])
    got, scales = reference.round_rows(rows, torch.int8)
    assert got.tolist() == [[127, 0, 2, -2, -127], [-127, 0, 2, 0, 1]]
    assert scales.tolist() == [1.0, 2.0]


def test_rows_of_fp8_are_rounded_to_the_nearest_and_none_is_beyond_the_largest():
    rows = torch.tensor([[448.0, 1.0625, 17.0, 19.0, -439.0], [-896.0, 0.0, 2.0, 2**-8, 2**-9]])
    got, scales = reference.round_rows(rows, FP8)
    assert got.float().tolist() == [[448, 1, 16, 20, -448], [-448, 0, 1, 2**-9, 0]]
    assert scales.tolist() == [1.0, 2.0]


@settings(max_examples=60, deadline=None)
@given(
    inputs=st.integers(1, 200),
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from(reference.INPUTS),
    seed=st.integers(0, 2**31),
)
def test_a_row_is_its_numbers_times_its_scale(inputs, kind, dtype, seed):
    x, _, _ = numbers(4, 1, inputs, seed, dtype)
    got, scales = reference.round_rows(x, KINDS[kind])
    wide, largest = x.float(), x.float().abs().amax(dim=1)
    assert torch.equal(got.float().abs().amax(dim=1), torch.full((4,), reference.LARGEST[KINDS[kind]]))
    step = scales[:, None] / 2 if kind == "int8" else torch.maximum(wide.abs() / 16, scales[:, None] * 2**-10)
    assert ((got.float() * scales[:, None] - wide).abs() <= 1.00001 * step).all()
    assert torch.allclose(scales * reference.LARGEST[KINDS[kind]], largest, rtol=2**-22)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 3000),
    dtype=st.sampled_from(reference.INPUTS),
    bias=st.booleans(),
    residual=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_backend_of_int8_gives_the_bits_of_the_reference(rows, outputs, inputs, dtype, bias, residual, seed):
    x, weight, scale = numbers(rows, outputs, inputs, seed, dtype)
    shift = torch.randn(outputs).to(dtype) if bias else None
    added = torch.randn(rows, outputs).to(dtype) if residual else None
    got = [run(x, weight, scale, shift, residual=added, backend=name) for name in EXACT]
    assert all(torch.equal(each, got[-1]) for each in got)


@pytest.mark.parametrize("backend", EXACT)
def test_the_largest_sums_are_exact(backend):
    """6,144 times 127 * 127, less one: beyond 2^24 and odd."""
    for sign in (1, -1):
        weight = torch.full((8, 6144), 127 * sign, dtype=torch.int8)
        x = torch.full((17, 6144), 127.0)
        x[:, 0], weight[:, 0] = 126.0, 1
        got = run(x, weight, torch.ones(8), backend=backend)
        whole = sign * 127 * 127 * 6143 + 126
        assert torch.equal(got, torch.full((17, 8), float(whole)).float())


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("gelu", ["none", "exact"])
def test_a_rows_bits_depend_on_the_row_alone(backend, gelu):
    x, weight, scale = numbers(37, 24, 130, 0, torch.bfloat16)

    def product(part):
        return run(part, weight, scale, gelu=gelu, backend=backend)

    together, order = product(x), torch.randperm(37)
    assert torch.equal(product(x[order]), together[order])
    for size in (1, 5, 17):
        assert torch.equal(together, torch.cat([product(part) for part in x.split(size)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strange", [float("inf"), float("-inf"), float("nan")])
def test_a_row_that_is_not_finite_gives_nan_and_no_other_does(kind, strange):
    x, weight, scale = numbers(19, 16, 64, 0, kind=kind)
    x[1, 3], x[2] = strange, 0.0
    bias = torch.arange(16, dtype=torch.float32)
    for name in ("torch", "reference", *(("torch/int_mm",) if kind == "int8" else ())):
        y = run(x, weight, scale, bias, gelu="exact", residual=torch.ones(19, 16), backend=name)
        assert y.isnan().all(dim=1).tolist() == [row == 1 for row in range(19)], name
        assert y.isfinite().all(dim=1).tolist() == [row != 1 for row in range(19)], name
        assert torch.allclose(y[2], torch.nn.functional.gelu(bias) + 1), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-31, 1e30])
def test_the_smallest_and_largest_rows(kind, size):
    """Numbers that fp32 barely holds neither overflow nor divide by nothing."""
    x, weight, scale = numbers(3, 5, 40, 0, kind=kind)
    x = x / x.abs().amax(dim=1, keepdim=True) * size
    got, scales = reference.round_rows(x, KINDS[kind])
    assert bool(got.float().isfinite().all())
    assert bool((scales >= torch.finfo(torch.float32).tiny).all())
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T
    y = quantized_linear(x, weight, scale, backend="reference")
    assert float((y.double() - exact).abs().max()) <= 0.05 * max(float(exact.abs().max()), 40 * reference.LEAST)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_operator(case):
    """Of int8: opcheck multiplies its inputs, and torch has no product of fp8 numbers."""
    inputs = make_inputs(case, CPU, 0)
    if inputs[1].dtype is torch.int8:
        for backend in EXACT[1:]:
            torch.library.opcheck(torch.ops.hqtvae_fast.quantized_linear.default, (*inputs, backend))
    (baseline,) = SPEC.baselines.values()
    y = SPEC.run(*inputs)
    assert (baseline(*inputs).shape, baseline(*inputs).dtype) == (y.shape, y.dtype)
    assert float((baseline(*inputs).float() - y.float()).abs().max()) < (0.1 if inputs[1].dtype is torch.int8 else 0.5)


def test_more_dimensions_and_strides_are_rows():
    x, weight, scale = numbers(24, 16, 64, 0)
    wanted = quantized_linear(x, weight, scale, backend="reference")
    wide = torch.zeros(4, 7, 64)
    wide[:, 1:] = x.view(4, 6, 64)
    for backend in EXACT:
        got = run(wide[:, 1:], weight, scale, residual=torch.zeros(4, 6, 16), backend=backend)
        assert torch.equal(got, wanted.view(4, 6, 16)), backend


@pytest.mark.parametrize("index, message", [(0, "differ"), (2, "off by"), (3, "off by")])
def test_the_check_can_fail(index, message):
    inputs = make_inputs(SMALL_CASES[index], CPU, 0)
    got, wanted = SPEC.run(*inputs), SPEC.reference(*inputs)
    SPEC.check(got, wanted, inputs)
    wrong = torch.nextafter(got, got + 1) if index == 0 else got + 0.02 * got.abs().max()
    with pytest.raises(AssertionError, match=message):
        SPEC.check(wrong, wanted, inputs)


def test_a_scale_of_all_rows_is_not_one_of_each():
    """What a row is rounded by is its own: neighbours of a thousand times its size do not matter."""
    x, weight, scale = numbers(20, 16, 64, 0)
    x[10:] *= 1e3
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T
    y = quantized_linear(x, weight, scale)
    for rows in (slice(10), slice(10, 20)):
        assert float((y[rows] - exact[rows]).abs().max()) < 0.02 * float(exact[rows].abs().max())


@pytest.mark.parametrize("case", [*CASES[:4], *SMALL_CASES], ids=lambda case: case.name)
def test_tuning_makes_the_same_choice_again(case):
    with torch.device("meta"):
        inputs = tuple(torch.empty_like(x, device="meta") if isinstance(x, torch.Tensor) else x for x in _shapes(case))
    _, again = fitted(SPEC, inputs)
    assert again.sizes == dict(case.sizes)
    assert again.dtype is case.dtype


def _shapes(case):
    M, N, K = case["M"], case["N"], case["K"]
    weight = torch.empty(N, K, dtype=KINDS["fp8" if case["fp8"] else "int8"])
    extras = [torch.empty(shape, dtype=case.dtype) for shape in ((N,), (M, N))[: case["extra"]]]
    gelu = ("none", "exact", "sigmoid")[case["gelu"]]
    return (torch.empty(M, K, dtype=case.dtype), weight, torch.empty(N), *extras, *[None] * (2 - len(extras)), gelu)


X, W, S = torch.zeros(20, 16), torch.zeros(24, 16, dtype=torch.int8), torch.ones(24)


@pytest.mark.parametrize(
    "arguments, how, message",
    [
        ((X[:, :8], W, S), {}, r"expected \[..., K\] and \[N, K\], K 1 to 133144; got \[20, 8\] and \[24, 16\]"),
        ((X.double(), W, S), {}, "expected x in fp32, bf16 or fp16, a weight in int8 or fp8; got torch.float64"),
        ((X, W.float(), S), {}, "a weight in int8 or fp8; got torch.float32 and torch.float32"),
        ((X, W, S[:2]), {}, r"scale: expected torch.float32 \[24\]; got torch.float32 \[2\]"),
        ((X, W, S, S[:4]), {}, r"bias: expected torch.float32 \[24\]"),
        ((X, W, S), {"residual": X}, r"residual: expected torch.float32 \[20, 24\]; got torch.float32 \[20, 16\]"),
        ((X, W, S), {"gelu": "tanh"}, "gelu: expected one of none, exact, sigmoid; got 'tanh'"),
    ],
)
def test_bad_inputs(arguments, how, message):
    with pytest.raises(ValueError, match=message):
        quantized_linear(*arguments, **how)


@pytest.mark.parametrize(
    "weight, backend, reason",
    [
        (W, "triton", "expected tensors on a CUDA device"),
        (W, "torch/scaled_mm", "expected x in bf16 and a weight in fp8; got torch.float32 and torch.int8"),
        (W.float().to(FP8), "torch/int_mm", "expected a weight in int8; got torch.float8_e4m3fn"),
        (W, "torch/int_mm", "expected tensors on a CUDA device; got cpu"),
        (W.float().to(FP8), "triton/128x256x128", "expected a weight in int8 for tiles of 128x256x128"),
        (W, "triton/128x128x128x4", "expected 4 steps of 128 inputs or more; got 16 inputs"),
        (W.T.contiguous().T, "triton", "expected a contiguous weight"),
    ],
)
def test_who_cannot_says_why(weight, backend, reason):
    with pytest.raises(BackendError, match=reason):
        quantized_linear(X, weight, S, backend=backend)


@pytest.mark.parametrize(
    "capability, able",
    [((8, 0), {"torch"}), ((8, 9), {"triton", "torch"}), ((9, 0), {"triton", "torch/scaled_mm", "torch"})],
)
def test_what_a_gpu_can_do_with_fp8(capability, able, monkeypatch):
    """By its compute capability; int8 goes on all from 8.0 on."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for module in (library, triton):
        monkeypatch.setattr(module, "capability_at_least", lambda x, least: capability >= least)
    for kind, wanted in (("fp8", able), ("int8", {"triton", "torch/int_mm", "torch"})):
        with FakeTensorMode(), torch.device("cuda"):
            weight = torch.empty(64, 128, dtype=KINDS[kind])
            inputs = (torch.empty(50, 128, dtype=torch.bfloat16), weight, torch.empty(64), None, None, "none")
            names = {each.name for each in SPEC.backends if not each.tile and each.why_not(*inputs) is None}
        assert names - {"reference"} == wanted


@pytest.mark.parametrize("rows, outputs, inputs", [(16, 64, 128), (50, 60, 128), (50, 64, 100)])
def test_the_librarys_product_on_a_gpu_wants_rows_and_multiples(rows, outputs, inputs):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.device("cuda"):
        x, weight = torch.empty(rows, inputs), torch.empty(outputs, inputs, dtype=torch.int8)
        assert "expected 17 rows or more" in library.why_not_int_mm(x, weight)


def test_few_tiles_are_small_ones():
    assert triton.pick_tile(50, 1536, 132) is triton.SMALL
    assert triton.pick_tile(512, 6144, 132) is triton.LARGE
