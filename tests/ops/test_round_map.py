"""Rounding to 8 bits: the definition, what computes it faster, and its refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import round_map
from hqtvae_fast.ops.cpu_library import load
from hqtvae_fast.ops.kernels.round_map import FORMS, Rounding, triton
from hqtvae_fast.ops.kernels.round_map.spec import SPEC, make_inputs

CPU = torch.device("cpu")
needs_library = pytest.mark.skipif(load()[0] is None, reason=f"compiled kernels: {load()[1]}")


def numbers(values, rounding):
    x = torch.tensor(values).view(1, 1, 1, -1)
    return round_map(x, rounding, backend="reference").flatten().float().tolist()


def test_maps_are_rounded_to_nearest_and_cut_off():
    """Ties go to even."""
    span = torch.tensor([-1.0, 1.55])
    rounding = Rounding.of(span, "uint8")
    assert (rounding.zero, rounding.scale) == (100, pytest.approx(0.01))
    x = [-9.0, -1.0, -0.004, 0.0, 0.006, 1.55, 9.0, float("inf"), float("nan")]
    assert numbers(x, rounding) == [0, 0, 100, 100, 101, 255, 255, 255, 100]
    assert numbers(x, Rounding.of(span, "int8")) == [-128, -128, -28, -28, -27, 127, 127, 127, -28]
    assert numbers([0.5, 1.5, 2.5, -0.5], Rounding("int8", 1.0, 10)) == [10, 12, 12, 10]
    assert numbers([1.0625, 17.0, 19.0, 1e3, -1e9, float("nan")], Rounding("fp8", 1.0)) == [1, 16, 20, 448, -448, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("span", [[1.0, 2.0], [-2.0, -1.0], [0.0, 0.0]])
def test_zero_is_always_a_number(span, form):
    rounding = Rounding.of(torch.tensor(span), form)
    rounding.check()
    assert numbers([0.0], rounding) == [rounding.zero]


def test_int8_numbers_are_uint8s_less_128():
    span, x = torch.tensor([-0.27, 3.1]), torch.randn(2, 8, 5, 5)
    small, large = (round_map(x, Rounding.of(span, form)) for form in ("int8", "uint8"))
    assert torch.equal(small.int() + 128, large.int())


@needs_library
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    summed=st.booleans(),
    low=st.floats(-5.0, 0.0),
    high=st.floats(0.0, 5.0),
    layout=st.sampled_from([torch.channels_last, torch.contiguous_format]),
)
def test_the_compiled_kernel_gives_the_same_numbers(shape, dtype, summed, low, high, layout):
    generator = torch.Generator().manual_seed(sum(shape))
    x, residual = (torch.randn(shape, generator=generator).to(dtype=dtype, memory_format=layout) for _ in range(2))
    rounding = Rounding.of(torch.tensor([low, high]), "uint8")
    x[0, 0, 0, 0] = float("nan")
    got, wanted = (
        round_map(x, rounding, residual=residual if summed else None, backend=backend)
        for backend in ("native", "reference")
    )
    assert torch.equal(got, wanted)
    assert got.stride() == x.stride()


@needs_library
def test_every_tie_and_every_bf16():
    """All 65,536 numbers of 16 bits, and all ties of a span in fp32."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).view(1, 256, 16, 16)
    ties = (torch.arange(-300, 300) + 0.5).view(1, 24, 5, 5)
    for x in (every, 0.25 * ties, 0.1 * ties):
        for rounding in (Rounding("uint8", 0.25, 3), Rounding("uint8", 0.1, 128), Rounding("uint8", 2.0**-120, 255)):
            one, other = (round_map(x, rounding, backend=backend) for backend in ("native", "reference"))
            assert torch.equal(one, other)


@pytest.mark.parametrize("case", [SPEC.small[2], SPEC.small[5]], ids=lambda case: case.name)
def test_opcheck(case):
    x, *rest = make_inputs(case, CPU, 0)
    inputs = (x.nan_to_num(0.0), *rest, "reference")  # it compares with equal, which NaN is not
    torch.library.opcheck(torch.ops.hqtvae_fast.round_map.default, inputs)


def test_the_check_sees_one_number_that_is_off_by_one():
    inputs = make_inputs(SPEC.small[0], CPU, 0)
    got = SPEC.run(*inputs)
    got[0, 0, 0, 0] += 1
    with pytest.raises(AssertionError, match="1 of 1200 numbers differ, by up to 1"):
        SPEC.check(got, SPEC.reference(*inputs), inputs)


X = torch.zeros(1, 8, 2, 2)


@pytest.mark.parametrize(
    "x, rounding, more, message",
    [
        (X[0], Rounding("int8", 1.0), {}, r"x: expected floating \[B, C, H, W\]; got torch.float32 \[8, 2, 2\]"),
        (X.int(), Rounding("int8", 1.0), {}, "x: expected floating"),
        (X, Rounding("int4", 1.0), {}, "expected a form of uint8, int8, fp8; got 'int4'"),
        (X, Rounding("int8", 0.0), {}, "expected a scale above 0; got 0.0"),
        (X, Rounding("int8", float("nan")), {}, "expected a scale above 0; got nan"),
        (X, Rounding("int8", 1.0, 200), {}, "expected a zero among int8's numbers; got 200"),
        (X, Rounding("fp8", 1.0, 3), {}, "expected a zero among fp8's numbers; got 3"),
        (X, Rounding("int8", 1.0), {"residual": X[:, :4]}, r"residual: expected torch.float32 \[1, 8, 2, 2\] as x"),
        (X, Rounding("int8", 1.0), {"shift": X}, r"shift: expected floating \[8\]"),
    ],
)
def test_refusals(x, rounding, more, message):
    with pytest.raises(ValueError, match=message):
        round_map(x, rounding, **more)


def test_backends_say_why_not():
    with pytest.raises(BackendError, match="expected uint8 on a CPU; got int8"):
        round_map(X, Rounding("int8", 1.0), backend="native")
    with pytest.raises(BackendError, match="expected no shift"):
        round_map(X, Rounding("uint8", 1.0), shift=X[0, :, 0, 0], backend="native")
    assert "channels-last" in triton.why_not(X, None, None, "int8")
    like = X.contiguous(memory_format=torch.channels_last)
    assert "expected int8 or fp8 on a GPU; got uint8" in triton.why_not(like, None, None, "uint8")
    assert "CUDA device" in triton.why_not(like, None, None, "int8")
