"""Keys and values in 8 bits: how they are rounded, attention over them against float64, and what the rounding costs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import decode_attention, prefill_attention
from hqtvae_fast.ops.kernels.decode_attention import int8
from hqtvae_fast.ops.kernels.decode_attention.spec import SPEC

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")
CASES = [case for case in SPEC.small if case["int8"]]
BACKENDS = ["reference", "sdpa"]


def cache(batch, heads, capacity, width, seed=0):
    """Of random keys and values: numbers and scales, and what was rounded."""
    exact = torch.randn(2, batch, heads, capacity, width, generator=torch.Generator().manual_seed(seed))
    numbers, scales = int8.rounded(exact)
    return numbers[0], numbers[1], scales, exact


# ------------------------------------------------------------------------------------------------------------- rounding


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(1, 80),
    exponent=st.integers(-120, 120),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_each_number_is_within_half_a_step(width, exponent, dtype, seed):
    x = torch.randn(7, width, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    x = x.to(dtype)
    x = x[x.isfinite().all(dim=1) & (x.abs().amax(dim=1) > 1e-35)]
    numbers, scales = int8.rounded(x)
    assert numbers.dtype is torch.int8
    assert scales.dtype is torch.float32
    error = (numbers.double() * scales.double()[:, None] - x.double()).abs()
    assert (error <= (0.5 + 1e-4) * scales.double()[:, None]).all()
    assert (numbers.int().abs().amax(dim=1) == 127).all()
    assert torch.equal(scales, x.float().abs().amax(dim=1) * (1 / 127))


def test_ties_go_to_even_numbers():
    numbers, scales = int8.rounded(torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]))
    assert scales == 1
    assert numbers.tolist() == [127, 0, 2, 2, 0, -2, -2, 126]


def test_zeros_and_what_is_as_good_as_zero():
    numbers, scales = int8.rounded(torch.tensor([[0.0, -0.0], [1e-44, -1e-40], [1e-36, 0.0]]))
    assert numbers.tolist() == [[0, 0], [0, 0], [0, 0]]
    assert scales.tolist() == [0, 0, 0]
    assert int8.rounded(torch.tensor([3e-36, 0.0]))[0].tolist() == [127, 0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_is_nan_to_all_that_see_it(bad):
    numbers, scales = int8.rounded(torch.tensor([[1.0, bad, 2.0], [1.0, 3.0, 2.0]]))
    assert numbers[0].tolist() == [0, 0, 0]
    assert scales.isnan().tolist() == [True, False]
    for part in (1, 2):  # a key, a value
        keys, values, scales, _ = cache(2, 2, 8, 16)
        qkv = torch.randn(2, 1, 3, 2, 16)
        qkv[1, 0, part, 0, 3] = bad
        for step in (4, 5):  # written, and seen by the next position
            y = decode_attention(qkv, keys, values, step, scales=scales).view(2, 2, 16)
            assert y[1, 0].isnan().all()
            assert y[0].isfinite().all()
            assert y[1, 1].isfinite().all()
            qkv = torch.randn(2, 1, 3, 2, 16)


# ------------------------------------------------------------------------------------------------------------ attention


def exact_attention(q, keys, values):
    """In float64: queries [B, H, T, E] over [B, H, S, E]."""
    weights = (q.double() @ keys.double().transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ values.double()


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    steps=st.integers(1, 4),
    heads=st.integers(1, 3),
    width=st.sampled_from([4, 20, 64]),
    start=st.integers(0, 70),
    spare=st.integers(0, 9),
    moving=st.booleans(),
    backend=st.sampled_from(BACKENDS),
    seed=st.integers(0, 2**31),
)
def test_it_is_right_over_what_was_kept(batch, steps, heads, width, start, spare, moving, backend, seed):
    keys, values, scales, _ = cache(batch, heads, start + steps + spare, width, seed)
    before = keys.clone(), values.clone(), scales.clone()
    qkv = torch.randn(batch, steps, 3, heads, width, generator=torch.Generator().manual_seed(seed))
    place = torch.tensor(start) if moving else start
    y = decode_attention(qkv, keys, values, place, scales=scales, backend=backend)
    q, *new = qkv.permute(2, 0, 3, 1, 4)
    end = start + steps
    for kept, own, old, old_scales, x in zip((keys, values), scales, before[:2], before[2], new, strict=True):
        numbers, fresh = int8.rounded(x)
        assert torch.equal(kept[:, :, start:end], numbers)
        assert torch.equal(own[:, :, start:end], fresh)
        for part in (slice(start), slice(end, None)):
            assert torch.equal(kept[:, :, part], old[:, :, part])
            assert torch.equal(own[:, :, part], old_scales[:, :, part])
    seen = [(x.double() * own.double()[..., None])[:, :, :end] for x, own in zip((keys, values), scales, strict=True)]
    wanted = exact_attention(q, *seen)
    y = y.double().view(batch, steps, heads, width).transpose(1, 2)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([8, 32, 64]),
    length=st.integers(1, 64),
    size=st.floats(0.1, 3),
    seed=st.integers(0, 2**31),
)
def test_rounding_costs_no_more_than_its_bound(width, length, size, seed):
    """A score is off by at most the sum of |q| times half a step of its key: a weight by that in its exponent, twice,
    for the others' change too; and a value by half a step."""
    generator = torch.Generator().manual_seed(seed)
    exact = size * torch.randn(2, 1, 2, length, width, generator=generator)
    q = torch.randn(1, 2, 1, width, generator=generator)
    numbers, scales = int8.rounded(exact)
    y = int8.attend(q, *numbers, scales, torch.ones(1, length, dtype=torch.bool))
    error = (y.double() - exact_attention(q, *exact)).abs().amax(dim=(2, 3))
    off = q.abs().sum(dim=(2, 3)) * scales[0].amax(dim=-1) / 2 * width**-0.5
    bound = torch.expm1(2 * off) * exact[1].abs().amax(dim=(2, 3)) + scales[1].amax(dim=-1) / 2
    assert (error <= bound + 1e-5 * size).all()


def test_rounding_is_small_beside_the_values():
    """Of normal numbers, 64 positions of heads of 64: below a hundredth; with two bits less four times as much."""
    generator = torch.Generator().manual_seed(0)
    exact, q = torch.randn(2, 8, 8, 64, 64, generator=generator), torch.randn(8, 8, 1, 64, generator=generator)
    wanted, seen = exact_attention(q, *exact), torch.ones(1, 64, dtype=torch.bool)

    def share(bits):
        numbers, scales = int8.rounded(exact)
        step = 2.0 ** (8 - bits)
        y = int8.attend(q, *(numbers / step).round(), scales * step, seen)
        return float((y - wanted).norm() / wanted.norm())

    assert share(8) < 0.01
    assert share(6) > 3 * share(8)


def test_a_position_is_the_same_to_all_that_see_it():
    """One at a time, each attended as it is written, and all of them afterwards over the whole cache."""
    qkv = torch.randn(2, 6, 3, 3, 16)
    keys, values = torch.zeros(2, 2, 3, 6, 16, dtype=torch.int8)
    scales = torch.zeros(2, 2, 3, 6)
    parts = [qkv[:, t : t + 1].contiguous() for t in range(6)]
    y = [decode_attention(part, keys, values, t, scales=scales) for t, part in enumerate(parts)]
    for t, (part, one) in enumerate(zip(parts, y, strict=True)):
        seen = torch.arange(6)[None] <= t
        again = int8.attend(part[:, :, 0].transpose(1, 2), keys, values, scales, seen)
        torch.testing.assert_close(one, again.transpose(1, 2).flatten(2))
    filled = torch.zeros_like(keys), torch.zeros_like(values), torch.zeros_like(scales)
    prefill_attention(qkv, *filled[:2], scales=filled[2])
    assert all(torch.equal(*pair) for pair in zip(filled, (keys, values, scales), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_operator(case, backend):
    inputs = SPEC.make_inputs(case, CPU, 0)
    torch.library.opcheck(torch.ops.hqtvae_fast.decode_attention.default, (*inputs, backend))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_check_finds_one_number_and_one_scale(case):
    wanted = SPEC.reference(*SPEC.make_inputs(case, CPU, 0))
    for part, said in enumerate(("output: off by", "keys: other", "values: other", "scales: other")):
        got = list(SPEC.run(*SPEC.make_inputs(case, CPU, 0)))
        wrong = got[part].clone()
        wrong.view(-1)[-1] += 1 if part else 0.3
        got[part] = wrong
        with pytest.raises(AssertionError, match=said):
            SPEC.check(tuple(got), wanted, SPEC.make_inputs(case, CPU, 0))


# ------------------------------------------------------------------------------------------------------------- refusals

QKV, EIGHT, FLOAT = torch.zeros(1, 1, 3, 2, 8), torch.zeros(1, 2, 4, 8, dtype=torch.int8), torch.zeros(1, 2, 4, 8)
SCALES = torch.zeros(2, 1, 2, 4)


@pytest.mark.parametrize(
    "keys,values,scales,message",
    [
        (EIGHT, EIGHT, None, "scales: expected fp32 of int8 keys and values; got None of torch.int8 and torch.int8"),
        (FLOAT, EIGHT, None, "got None of torch.float32 and torch.int8"),
        (FLOAT, FLOAT, SCALES, "got torch.float32 of torch.float32 and torch.float32"),
        (EIGHT, EIGHT, SCALES.half(), "got torch.float16 of torch.int8"),
        (EIGHT, EIGHT, SCALES[:, :, :, :3], r"scales: expected \[2, 1, 2, 4\]; got \[2, 1, 2, 3\]"),
    ],
)
def test_other_scales_are_refused(keys, values, scales, message):
    with pytest.raises(ValueError, match=message):
        decode_attention(QKV, keys, values, 0, scales=scales)


@pytest.mark.parametrize(
    "backend,message",
    [
        ("native", "expected no bias, no scales"),
        ("triton", "'triton/int8' takes those"),
        ("triton/int8", r"expected tensors on a CUDA device \(or TRITON_INTERPRET=1\)"),
    ],
)
def test_backends_that_cannot_say_why(backend, message):
    with pytest.raises(BackendError, match=message):
        decode_attention(QKV, EIGHT.clone(), EIGHT.clone(), 0, scales=SCALES.clone(), backend=backend)
    if backend == "triton/int8":
        with pytest.raises(BackendError, match="expected keys and values in int8, and their scales"):
            decode_attention(QKV, FLOAT.clone(), FLOAT.clone(), 0, backend=backend)


def test_bytes_of_a_step_at_batch_512():
    """As the kernel's head comment has them, of positions that are read: 12 layers, 31.5 in the mean over 64 steps."""
    size = {"B": 512, "H": 24, "E": 64, "C": 64, "bias": 1}
    read = {}
    for eight in (0, 1):
        costs = [SPEC.cost(type(CASES[0])("", size | {"start": n, "int8": eight}, torch.bfloat16)) for n in range(64)]
        none = SPEC.cost(type(CASES[0])("", size | {"start": 0, "int8": eight}, torch.bfloat16)).bytes
        read[eight] = 12 * (math.fsum(cost.bytes for cost in costs) / 64 - none)
    assert round(read[1] / 1e6) == 632
    assert round(read[0] / 1e6) == 1189
