"""Causal attention over a prefix: what it gives and caches, and how other packages are called."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import decode_attention, prefill_attention
from hqtvae_fast.ops.kernels.decode_attention import int8
from hqtvae_fast.ops.kernels.prefill_attention import flash_attn, sdpa, xformers
from hqtvae_fast.ops.kernels.prefill_attention.spec import SPEC

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_spec(case):
    inputs = SPEC.make_inputs(case, CPU, 0)
    wanted = SPEC.reference(*inputs)
    got = SPEC.run(*SPEC.make_inputs(case, CPU, 0))
    SPEC.check(got, wanted, inputs)
    with pytest.raises(AssertionError, match="output: off by"):
        SPEC.check((got[0] + 0.3, *got[1:]), wanted, inputs)
    said, wrong = ("values: others than", got[2] + 1) if case["int8"] else ("values: off by", got[2] + 0.3)
    with pytest.raises(AssertionError, match=said):
        SPEC.check((*got[:2], wrong, *got[3:]), wanted, inputs)


def test_whole_is_one_by_one():
    """The prefix at once, and position by position over the cache."""
    qkv, bias, keys, values, _ = SPEC.make_inputs(SPEC.small[0], CPU, 0)
    whole, *cached = SPEC.run(qkv, bias, keys.clone(), values.clone())
    for t in range(qkv.shape[1]):
        one = decode_attention(qkv[:, t : t + 1].contiguous(), keys, values, t, bias=bias)
        torch.testing.assert_close(one, whole[:, t : t + 1])
    torch.testing.assert_close([keys, values], cached)


@pytest.mark.parametrize("case", [SPEC.small[0], SPEC.small[-1]], ids=lambda case: case.name)
def test_operator(case):
    inputs = SPEC.make_inputs(case, CPU, 0)
    torch.library.opcheck(torch.ops.hqtvae_fast.prefill_attention.default, (*inputs, "sdpa"))


@pytest.mark.parametrize("backend", ["sdpa", "sdpa/math"])
def test_a_cache_in_8_bits_is_filled_and_changes_nothing_else(backend):
    """The prefix sees itself unrounded, so that its output has the same bits; what is kept is rounded."""
    case = next(case for case in SPEC.small if case["int8"])
    qkv, bias, *cache = SPEC.make_inputs(case, CPU, 0)
    y = prefill_attention(qkv, *cache[:2], bias=bias, scales=cache[2], backend=backend)
    plain = torch.zeros(2, *cache[0].shape)
    assert torch.equal(y, prefill_attention(qkv, *plain, bias=bias, backend=backend))
    T = qkv.shape[1]
    for kept, numbers, scales in zip(plain, cache[:2], cache[2], strict=True):
        wanted = int8.rounded(kept[:, :, :T])
        assert torch.equal(numbers[:, :, :T], wanted[0])
        assert torch.equal(scales[:, :, :T], wanted[1])
        assert not numbers[:, :, T:].any()
        assert not scales[:, :, T:].any()


@pytest.mark.parametrize("package", ["flash_attn", "xformers"])
def test_packages_that_cannot_run_are_refused(package):
    inputs = SPEC.make_inputs(SPEC.small[0], CPU, 0)
    with pytest.raises(BackendError, match=f"{package}.*expected bf16 or fp16 on a CUDA device; got torch.float32"):
        SPEC.run(*inputs, backend=package)


def causal(q, k, v):
    """[B, T, H, E] each, as both packages take them."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)


def test_flash_attn_is_called_as_it_documents(monkeypatch):
    """A stand-in with its signature: packed [B, T, 3, H, E] in, [B, T, H, E] out."""
    package = ModuleType("flash_attn")
    package.flash_attn_qkvpacked_func = lambda qkv, *, causal: globals()["causal"](*qkv.unbind(2)) if causal else None
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    qkv = SPEC.make_inputs(SPEC.small[0], CPU, 0)[0]
    torch.testing.assert_close(flash_attn.attend(qkv), sdpa.attend(qkv))


def test_xformers_is_called_as_it_documents(monkeypatch):
    """A stand-in with its signature: [B, T, H, E] each, and a mask object."""
    package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    ops.LowerTriangularMask = type("LowerTriangularMask", (), {})

    def memory_efficient_attention(q, k, v, *, attn_bias):
        assert isinstance(attn_bias, ops.LowerTriangularMask)
        return causal(q, k, v)

    ops.memory_efficient_attention, package.ops = memory_efficient_attention, ops
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    qkv = SPEC.make_inputs(SPEC.small[0], CPU, 0)[0]
    torch.testing.assert_close(xformers.attend(qkv), sdpa.attend(qkv))


@pytest.mark.gpu
@pytest.mark.parametrize("package", ["flash_attn", "xformers"])
def test_packages_on_a_gpu(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    case, device = SPEC.cases[1], torch.device("cuda")
    got = SPEC.run(*SPEC.make_inputs(case, device, 0), backend=package)
    inputs = SPEC.make_inputs(case, device, 0)
    SPEC.check(got, SPEC.reference(*inputs), inputs)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: prefill_attention(torch.zeros(2, 3), *torch.zeros(2, 1, 1, 1, 1)), r"qkv: expected \[B, T, 3, H, E\]"),
        (
            lambda: prefill_attention(torch.zeros(1, 4, 3, 2, 8), *torch.zeros(2, 1, 2, 3, 8)),
            r"\[1, 2, C, 8\] with C >= 4; got \[1, 2, 3, 8\]",
        ),
        (
            lambda: prefill_attention(torch.zeros(1, 4, 3, 2, 8), *torch.zeros(2, 1, 2, 4, 8), bias=torch.zeros(8)),
            r"bias: expected torch.float32 \[48\]",
        ),
        (
            lambda: prefill_attention(torch.zeros(1, 4, 3, 2, 8), *torch.zeros(2, 1, 2, 4, 8), scales=torch.zeros(8)),
            "scales: expected fp32 of int8 keys and values; got torch.float32 of torch.float32",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
