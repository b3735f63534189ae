"""GroupNorm with SiLU against its definition in double precision, and its gradients."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import add_group_norm_silu, group_norm_silu
from hqtvae_fast.ops.cpu_library import load
from hqtvae_fast.ops.kernels.group_norm_silu import triton
from hqtvae_fast.ops.kernels.group_norm_silu.spec import SPEC, make_inputs
from hqtvae_fast.ops.kernels.round_map import FORMS, Rounding, round_map

CPU = torch.device("cpu")
SHIFTED = [case for case in SPEC.small if case.sizes.get("shift") and not case.sizes.get("form")]
IN_8_BITS = next(case for case in SPEC.small if case.name == "int8, sum")
BACKENDS = [
    pytest.param("native", marks=pytest.mark.skipif(load()[0] is None, reason=f"compiled kernels: {load()[1]}")),
    "reference",
]


def with_silu(inputs, silu):
    *most, _, shift, form, scale, zero = inputs
    return (*most, silu, shift, form, scale, zero)


def define(x, weight, bias, groups=32, silu=True):
    """In double precision, written out."""
    values = x.double().reshape(len(x), groups, -1)
    variance, mean = torch.var_mean(values, dim=2, correction=0, keepdim=True)
    n = ((values - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
    n = n * weight.double()[:, None, None] + bias.double()[:, None, None]
    return n * torch.sigmoid(n) if silu else n


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_small_cases(case, backend, silu):
    inputs = with_silu(make_inputs(case, CPU, 0), silu)
    if backend == "native" and inputs[-4] is not None:
        with pytest.raises(BackendError, match="expected no shift: convolutions on a CPU add their bias themselves"):
            SPEC.run(*inputs, backend=backend)
        return
    if backend == "native" and inputs[-3] not in (None, "uint8"):
        with pytest.raises(BackendError, match="expected uint8 on a CPU; got"):
            SPEC.run(*inputs, backend=backend)
        return
    if backend == "native" and case.dtype is torch.float16:
        with pytest.raises(BackendError, match=r"expected fp32 or bf16 on the CPU; got torch.float16"):
            SPEC.run(*inputs, backend=backend)
        return
    SPEC.check(SPEC.run(*inputs, backend=backend), SPEC.reference(*inputs), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [30.0, 1000.0])
@pytest.mark.parametrize("index", [1, 2, 3])
def test_large_means_cost_no_more_than_in_torch(index, offset, backend):
    inputs = make_inputs(SPEC.small[index], CPU, 0, offset)
    SPEC.check(SPEC.run(*inputs, backend=backend), SPEC.reference(*inputs), inputs)


def test_the_check_sees_sums_of_squares_cancel():
    """What torch itself computes in channels-last memory, where it takes E[x^2] - E[x]^2."""
    x, _, weight, bias, *_ = inputs = make_inputs(SPEC.small[3], CPU, 0, 300.0)
    wide = x.permute(0, 2, 3, 1).unflatten(3, (32, 16))
    mean, square = wide.mean((1, 2, 4)), wide.square().mean((1, 2, 4))
    rstd = (square - mean.square() + 1e-6).rsqrt()
    unit = ((wide - mean[:, None, None, :, None]) * rstd[:, None, None, :, None]).flatten(3).permute(0, 3, 1, 2)
    got = F.silu(unit * weight[:, None, None] + bias[:, None, None])
    with pytest.raises(AssertionError, match="the result: off by"):
        SPEC.check((got.contiguous(memory_format=torch.channels_last), None), SPEC.reference(*inputs), inputs)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.integers(1, 5),
    groups=st.sampled_from([1, 3, 32]),
    layout=st.sampled_from([torch.channels_last, torch.contiguous_format]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    sliced=st.booleans(),
)
def test_any_shape_and_layout(batch, height, width, size, groups, layout, dtype, sliced):
    generator = torch.Generator().manual_seed(size)
    C = size * groups
    x = torch.randn(batch, C, height + 2, width, generator=generator, dtype=dtype).contiguous(memory_format=layout)
    x = x[:, :, 1:-1] if sliced else x
    weight, bias = (torch.randn(C, generator=generator, dtype=dtype) for _ in range(2))
    y = group_norm_silu(x, weight, bias, groups)
    tolerance = 1e-12 if dtype is torch.float64 else 2e-5
    torch.testing.assert_close(y.double(), define(x, weight, bias, groups), rtol=tolerance, atol=tolerance)
    assert y.dtype == dtype
    if not sliced:
        assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sum_is_torchs(backend, dtype):
    x, residual, weight, bias, *_ = make_inputs(SPEC.small[2], CPU, 0)
    x, residual = x.to(dtype), residual.to(dtype)
    total, y = add_group_norm_silu(x, residual, weight, bias, backend=backend)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, group_norm_silu(total, weight, bias, backend=backend))
    assert total.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    side=st.integers(1, 9),
    size=st.integers(1, 5),
    form=st.sampled_from(list(FORMS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    summed=st.booleans(),
    silu=st.booleans(),
    low=st.floats(-1.0, 0.0),
    high=st.floats(0.1, 3.0),
)
def test_in_8_bits_it_is_the_result_rounded(batch, side, size, form, dtype, summed, silu, low, high):
    """Bit for bit, whoever computes it, and the sum beside it is the same."""
    generator = torch.Generator().manual_seed(side)
    x, residual = (torch.randn(batch, 32 * size, side, side, generator=generator) for _ in range(2))
    x, residual = (each.to(dtype=dtype, memory_format=torch.channels_last) for each in (x, residual))
    weight, bias = (torch.randn(32 * size, generator=generator) for _ in range(2))
    rounding = Rounding.of(torch.tensor([low, high]), form)
    for backend in ("native", "reference", "torch"):
        if backend == "native" and (load()[0] is None or form != "uint8"):
            continue
        how = {"silu": silu, "backend": backend}
        if summed:
            total, y = add_group_norm_silu(x, residual, weight, bias, **how)
            own, numbers = add_group_norm_silu(x, residual, weight, bias, rounding=rounding, **how)
            assert torch.equal(own, total)
        else:
            y = group_norm_silu(x, weight, bias, **how)
            numbers = group_norm_silu(x, weight, bias, rounding=rounding, **how)
        assert numbers.stride() == x.stride()
        assert torch.equal(numbers.float(), round_map(y, rounding, backend="reference").float())


def test_8_bits_have_no_gradient():
    x, _, weight, bias, *_ = make_inputs(SPEC.small[1], CPU, 0)
    with pytest.raises(ValueError, match="rounding: expected inference; got tensors that require gradients"):
        group_norm_silu(x.requires_grad_(), weight, bias, rounding=Rounding("int8", 0.1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_gives_the_same_alone_and_in_a_batch(backend):
    x, _, weight, bias, *_ = make_inputs(SPEC.small[1], CPU, 0)
    y = group_norm_silu(x, weight, bias, backend=backend)
    for image in range(len(x)):
        assert torch.equal(group_norm_silu(x[image : image + 1], weight, bias, backend=backend)[0], y[image])


@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
def test_threads_change_nothing(weights):
    x, _, weight, bias, *_ = make_inputs(SPEC.small[3], CPU, 0)
    weight, bias = weight.to(weights), bias.to(weights)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = group_norm_silu(x, weight, bias)
        torch.set_num_threads(3)
        assert torch.equal(group_norm_silu(x, weight, bias), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("silu", [True, False])
def test_gradcheck(silu):
    x, residual = (torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    apply = functools.partial(add_group_norm_silu, num_groups=2, silu=silu)
    assert torch.autograd.gradcheck(apply, (x, residual, weight, bias))
    assert torch.autograd.gradcheck(
        lambda x, w, b: group_norm_silu(x, w, b, 2, silu=silu), (x.detach().requires_grad_(), weight, bias)
    )


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.5, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [1, 2, 3])
def test_gradients(index, dtype, offset, backend, silu):
    """Against float64, beside those that torch takes itself in the same dtype in NCHW memory."""
    x, _, weight, bias, *_ = make_inputs(SPEC.small[index], CPU, 0, offset)
    x = x.to(dtype)
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def gradients(function, *leaves):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        return torch.autograd.grad(function(*leaves), leaves, dy.to(leaves[0].dtype))

    ours = gradients(lambda *leaves: group_norm_silu(*leaves, silu=silu, backend=backend), x, weight, bias)
    exact = gradients(lambda *leaves: define(*leaves, silu=silu), x.double(), weight.double(), bias.double())

    def torchs(x, weight, bias):
        n = F.group_norm(x.contiguous(), 32, weight, bias, 1e-6)
        return F.silu(n) if silu else n

    plain = gradients(torchs, x, weight, bias)
    for name, got, other, wanted in zip(("x", "weight", "bias"), ours, plain, exact, strict=True):
        unit = torch.finfo(got.dtype).eps * wanted.abs()
        limit = 2 * (other.double() - wanted).abs().max() + unit + 1e-5
        assert ((got.double() - wanted).abs() <= limit).all(), name
        assert got.dtype == (dtype if name == "x" else torch.float32)


def test_a_gradient_of_the_sum_alone_passes_by_the_norm():
    x, residual = (torch.randn(1, 32, 2, 2, requires_grad=True) for _ in range(2))
    weight = torch.ones(32, requires_grad=True)
    total, _ = add_group_norm_silu(x, residual, weight, torch.zeros(32))
    total.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(residual.grad, torch.ones_like(x))
    assert weight.grad is None


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend, added):
    x, residual, weight, bias, groups, eps, silu, *_ = make_inputs(SPEC.small[2], CPU, 0)
    x, residual, weight, bias = (y.requires_grad_() for y in (x, residual, weight, bias))
    inputs = (x, residual if added else None, weight, bias, groups, eps, silu, None, None, 1.0, 0, backend)
    torch.library.opcheck(torch.ops.hqtvae_fast.group_norm_silu.default, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_of_the_backward_operator(backend):
    x, _, weight, bias, groups, eps, silu, *_ = make_inputs(SPEC.small[2], CPU, 0)
    operators = torch.ops.hqtvae_fast
    _, _, mean, rstd = operators.group_norm_silu(x, None, weight, bias, groups, eps, silu, None, None, 1.0, 0, backend)
    inputs = (torch.ones_like(x), x, weight, bias, mean, rstd, silu, backend)
    torch.library.opcheck(operators.group_norm_silu_backward.default, inputs)


@pytest.mark.parametrize("case", [*SHIFTED, IN_8_BITS], ids=lambda case: case.name)
def test_opcheck_with_a_shift_and_in_8_bits(case):
    torch.library.opcheck(torch.ops.hqtvae_fast.group_norm_silu.default, (*make_inputs(case, CPU, 0), "reference"))


def test_a_shift_is_an_addition():
    x, _, weight, bias, *_, shift, _, _, _ = make_inputs(SHIFTED[0], CPU, 0)
    moved = x + shift[:, None, None]
    torch.testing.assert_close(
        group_norm_silu(x, weight, bias, shift=shift), group_norm_silu(moved, weight, bias), rtol=0, atol=2e-6
    )
    total, y = add_group_norm_silu(x, 2 * x, weight, bias, shift=shift)
    torch.testing.assert_close(total, 2 * x + moved, rtol=0, atol=2e-6)
    assert torch.equal(y, group_norm_silu(total, weight, bias, backend="reference"))


def test_the_check_sees_a_forgotten_shift():
    *most, shift, form, scale, zero = inputs = make_inputs(SHIFTED[1], CPU, 0)
    with pytest.raises(AssertionError, match="the sum: off by"):
        SPEC.check(SPEC.run(*most, torch.zeros_like(shift), form, scale, zero), SPEC.reference(*inputs), inputs)


def test_the_check_sees_a_number_of_another_result():
    inputs = make_inputs(IN_8_BITS, CPU, 0)
    y, total = SPEC.run(*inputs)
    SPEC.check((y, total), SPEC.reference(*inputs), inputs)
    y[1, 3, 2, 2] += 1
    with pytest.raises(AssertionError, match="the result: numbers of another result"):
        SPEC.check((y, total), SPEC.reference(*inputs), inputs)


@pytest.mark.parametrize(
    "shift,message",
    [
        (torch.zeros(7), r"shift: expected floating \[8\]; got torch.float32 \[7\]"),
        (torch.zeros(8).int(), r"shift: expected floating \[8\]; got torch.int32 \[8\]"),
        (torch.zeros(8, requires_grad=True), "shift: expected inference; got tensors that require gradients"),
    ],
)
def test_shifts_that_are_refused(shift, message):
    with pytest.raises(ValueError, match=message):
        group_norm_silu(torch.zeros(2, 8, 3, 3), torch.ones(8), torch.zeros(8), 4, shift=shift)


def test_not_a_number_stays_in_its_group():
    x, _, weight, bias, *_ = make_inputs(SPEC.small[0], CPU, 0)
    x[0, 2, 3, 4] = torch.nan  # of group 1
    y = group_norm_silu(x, weight, bias)
    bad = y.isnan().nonzero()
    assert sorted({(image, channel) for image, channel, *_ in bad.tolist()}) == [(0, 2), (0, 3)]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"x": torch.zeros(2, 8, 3)}, r"x: expected \[B, C, H, W\], none of them 0; got \[2, 8, 3\]"),
        ({"x": torch.zeros(0, 8, 3, 3)}, r"got \[0, 8, 3, 3\]"),
        ({"num_groups": 3}, "num_groups: expected a divisor of 8 channels; got 3"),
        ({"bias": torch.zeros(7)}, r"weight and bias: expected \[8\]; got \[8\] and \[7\]"),
        ({"x": torch.zeros(2, 8, 3, 3).int()}, "expected floating dtypes; got torch.int32"),
    ],
)
def test_refusals(change, message):
    inputs = {"x": torch.zeros(2, 8, 3, 3), "weight": torch.ones(8), "bias": torch.zeros(8), "num_groups": 4}
    with pytest.raises(ValueError, match=message):
        group_norm_silu(**(inputs | change))


def test_a_residual_of_another_shape_is_refused():
    x = torch.zeros(2, 8, 3, 3)
    with pytest.raises(
        ValueError, match=r"residual: expected torch.float32 \[2, 8, 3, 3\] as x; got torch.float32 \[2"
    ):
        add_group_norm_silu(x, x[:, :, :1], torch.ones(8), torch.zeros(8), 4)


@pytest.mark.parametrize(
    "change,reason",
    [
        ({}, r"expected tensors on a CUDA device \(or TRITON_INTERPRET=1\); got cpu"),
        ({"x": torch.zeros(2, 64, 3, 3)}, r"expected channels-last memory; got strides \(576, 9, 3, 1\)"),
        ({"C": 96}, "expected powers of two, up to 4096 channels; got 96 channels in 32 groups"),
    ],
)
def test_triton_says_why_not(change, reason):
    C = change.get("C", 64)
    x = change.get("x", torch.zeros(2, C, 3, 3).contiguous(memory_format=torch.channels_last))
    with pytest.raises(BackendError, match=reason):
        group_norm_silu(x, torch.ones(C), torch.zeros(C), backend="triton")


@pytest.mark.parametrize("side,C,runs", [(256, 128, 128), (64, 512, 32), (16, 512, 8), (1, 128, 1), (1024, 128, 128)])
def test_runs(side, C, runs):
    run = triton.run_length(side * side, C)
    assert -(-side * side // run) == runs
    assert run % triton.DEFAULT.rows(C) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("case", SPEC.cases, ids=lambda case: case.name)
def test_on_a_gpu(case):
    inputs = make_inputs(case, torch.device("cuda"), 0)
    got = SPEC.run(*inputs, backend="triton")
    SPEC.check(got, SPEC.reference(*inputs), inputs)
    if inputs[1] is not None and inputs[-1] is None:
        assert torch.equal(got[1], inputs[0] + inputs[1])
