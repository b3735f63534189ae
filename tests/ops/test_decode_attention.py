"""Attention over a cache: against float64, by our kernel and in plain torch; what it writes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.ops import decode_attention
from hqtvae_fast.ops.kernels.decode_attention import native, reference

DTYPES = [
    pytest.param(dtype, marks=pytest.mark.skipif(why_not() is not None, reason=f"native kernel: {why_not()}"), id=name)
    for name, (dtype, why_not) in {str(dtype): (dtype, why_not) for dtype, why_not in native.WHY_NOT.items()}.items()
]
in_each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def case(batch, steps, heads, width, capacity, seed=0, scale=1.0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    qkv = (torch.randn(batch, steps, 3, heads, width, generator=generator) * scale).to(dtype)
    cache = torch.randn(2, batch, heads, capacity, width, generator=generator).to(dtype)
    return qkv, cache[0], cache[1]


def exact(qkv, keys, values, start):
    """In float64, from the definition: the result [B, T, H, E], and the keys and values that it has seen."""
    q, k, v = (part.double() for part in qkv.permute(2, 0, 3, 1, 4))
    k, v = (torch.cat([old[:, :, :start].double(), new], dim=2) for old, new in ((keys, k), (values, v)))
    weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2), k, v


@in_each_dtype
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    steps=st.integers(1, 5),
    heads=st.integers(1, 3),
    width=st.sampled_from(native.WIDTHS),
    start=st.integers(0, 70),
    spare=st.integers(0, 9),
    scale=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    seed=st.integers(0, 2**31),
)
def test_native_kernel_is_right(dtype, batch, steps, heads, width, start, spare, scale, seed):
    qkv, keys, values = case(batch, steps, heads, width, start + steps + spare, seed, scale, dtype)
    wanted, k, v = exact(qkv, keys, values, start)
    untouched = keys[:, :, start + steps :].clone(), values[:, :, start + steps :].clone()
    y = decode_attention(qkv, keys, values, start)
    # One rounding to the dtype, on weights whose scores (up to about 10 * scale^2) carry fp32's errors.
    bound = torch.finfo(dtype).eps / 2 * wanted.abs() + 1e-5 * (1 + scale) * v.abs().amax()
    assert ((y.view(wanted.shape).double() - wanted).abs() <= bound).all()
    assert torch.equal(keys[:, :, : start + steps].double(), k)
    assert torch.equal(keys[:, :, start + steps :], untouched[0])
    assert torch.equal(values[:, :, : start + steps].double(), v)
    assert torch.equal(values[:, :, start + steps :], untouched[1])


@pytest.mark.parametrize("start", [0, 1, 7])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference(dtype, steps, start):
    qkv, keys, values = case(2, steps, 3, 20, 16, dtype=dtype)
    wanted, k, v = exact(qkv, keys, values, start)
    y = reference.decode_attention(qkv, None, keys, values, start).view(wanted.shape)
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(y.double(), wanted, rtol=tolerance, atol=tolerance)
    assert torch.equal(keys[:, :, : start + steps].double(), k)
    assert torch.equal(values[:, :, : start + steps].double(), v)


@in_each_dtype
def test_nan_is_not_hidden(dtype):
    qkv, keys, values = case(1, 1, 2, 64, 8, dtype=dtype)
    qkv[0, 0, 0, 1, 5] = float("nan")  # a query of head 1
    y = decode_attention(qkv, keys, values, 3).view(2, 64)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


@in_each_dtype
def test_operator(dtype):
    for start in (0, 3):
        qkv, keys, values = case(2, 4, 3, 64, 9, dtype=dtype)
        torch.library.opcheck(torch.ops.hqtvae_fast.decode_attention_cpu.default, (qkv, keys, values, start))


@in_each_dtype
def test_bad_caches(dtype):
    qkv, keys, values = case(2, 4, 3, 64, 9, dtype=dtype)
    with pytest.raises(ValueError, match=r"C >= 10; got \[2, 3, 9, 64\]"):
        decode_attention(qkv, keys, values, 6)
    with pytest.raises(ValueError, match=r"expected \[2, 3, C, 64\]"):
        decode_attention(qkv, keys[:1], values[:1], 0)
    with pytest.raises(ValueError, match="contiguous"):
        decode_attention(qkv, keys.transpose(2, 3).contiguous().transpose(2, 3), values, 0)


def test_other_heads_take_plain_torch():
    assert "heads of" in (native.why_not(torch.zeros(1, 1, 3, 2, 20).bfloat16()) or "")
    assert "float16" in (native.why_not(torch.zeros(1, 1, 3, 2, 64).half()) or "")
