"""Noise, selection and the draw as the CUDA kernels compute them, run on a CPU: bit for bit the references'."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hqtvae_fast.ops.kernels.sample_logits import COLDEST, noise, reference, spec

from .host_library import compile_library, pointer

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def as_words(values: torch.Tensor) -> torch.Tensor:
    """int64 in [0, 2^32) as the same 32 bits."""
    return values.to(torch.int64).where(values < 2**31, values - 2**32).to(torch.int32)


@QUICK
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 90))
def test_words(host, seed, step, position, count):
    drawn = torch.empty(count, dtype=torch.int32)
    host.words(ctypes.c_int64(seed), ctypes.c_int64(step), ctypes.c_int64(position), count, pointer(drawn))
    wanted = noise.random_words(torch.tensor([seed]), step, position, count)[0]
    assert torch.equal(drawn.long() & 0xFFFFFFFF, wanted)


def test_gumbel_bits_and_the_rough_variate(host):
    """Both ends of the words, and 2 million between; the rough one is as near as the margin of the draw supposes."""
    words = torch.cat([torch.arange(2**19), torch.arange(2**32 - 2**19, 2**32), torch.arange(0, 2**32, 1999)])
    bits = as_words(words)
    exact, rough = torch.empty(len(words)), torch.empty(len(words))
    host.gumbels(pointer(bits), len(words), pointer(exact), pointer(rough))
    wanted = noise.gumbel(words)
    assert torch.equal(exact.view(torch.int32), wanted.view(torch.int32))
    assert float((rough - exact).abs().max()) < 2e-5
    for best in (-math.inf, -3.0, 0.0, 20.0, 1e30, math.inf):
        limit = host.near_limit(ctypes.c_float(best))
        assert limit <= best
        assert not math.isfinite(best) or best - limit >= 5.9e-5


def test_conversions(host):
    bits = torch.arange(2**16).to(torch.int32).to(torch.int16)
    bf16, fp16 = torch.empty(2**16), torch.empty(2**16)
    host.widen(pointer(bits), 2**16, pointer(bf16), pointer(fp16))
    for got, wanted in ((bf16, bits.view(torch.bfloat16).float()), (fp16, bits.view(torch.float16).float())):
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got[~got.isnan()].view(torch.int32), wanted[~got.isnan()].view(torch.int32))
    x = torch.randint(-(2**31), 2**31, (1 << 20,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    x = torch.cat([x, torch.arange(0x3F7F7F00, 0x3F808100).to(torch.int32)]).view(torch.float32)  # ties among them
    narrowed = torch.empty(len(x), dtype=torch.int16)
    host.narrow(pointer(x), len(x), pointer(narrowed))
    got, wanted = narrowed.view(torch.bfloat16), x.bfloat16()
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got[~got.isnan()].view(torch.int16), wanted[~got.isnan()].view(torch.int16))


def test_masses(host):
    x = torch.cat([-torch.rand(1 << 16) * 30, torch.tensor([0.0, -0.0, -26.9, -27.1, -1e30, -math.inf])])
    fixed = torch.empty(len(x), dtype=torch.int64)
    host.masses(pointer(x), len(x), pointer(fixed))
    exact = x.double().exp()
    assert float((fixed.double() / 2**32 - exact).abs().sub(2.0**-32 + 2.0**-22 * exact).max()) <= 0
    assert fixed[-6] == fixed[-5] == 2**32
    assert fixed[-1] == 0


@QUICK
@given(st.integers(1, 600), st.integers(0, 2**32), st.sampled_from(["floats", "few", "bits"]), st.booleans())
def test_selection_is_that_of_a_sort(host, count, seed, kind, unit):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator)
    if kind == "few":
        x = x.round()
    if kind == "bits":
        x = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32).view(torch.float32)
        x = x.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
    weights = (
        torch.ones(count, dtype=torch.int64) if unit else torch.randint(0, 2**32 + 1, (count,), generator=generator)
    )
    weights[0] = max(1, int(weights[0]))
    target = int(torch.randint(1, int(weights.sum()) + 1, (1,), generator=generator))
    above = ctypes.c_uint64()
    arguments = (pointer(x), None, pointer(weights), count, ctypes.c_uint64(target), ctypes.byref(above))
    key = host.edge_of(*arguments)
    value = torch.tensor(key - 2**31 if key >= 2**31 else (~key & 0xFFFFFFFF) - 2**32)
    value = float(value.to(torch.int32).view(torch.float32))
    assert above.value == int(weights[x > value].sum()) < target
    assert int(weights[x >= value].sum()) >= target
    assert value in x.tolist()


@QUICK
@given(
    scale=st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 10.0, 1e4, 1e30]),
    infinite=st.integers(0, 3),
    codes=st.sampled_from([1, 2, 5, 64, 257]),
    k=st.one_of(st.none(), st.integers(1, 257)),
    seed=st.integers(0, 2**32),
)
def test_the_draw_is_the_references(draw, scale, infinite, codes, k, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(32, codes, generator=generator) * scale).bfloat16()
    logits[:infinite, 1::7] = float("-inf")
    logits[infinite : 2 * infinite, :1] = float("inf") if scale == 10.0 else 0.0
    seeds = torch.randint(-(2**62), 2**62, (32,), generator=generator)
    arguments = (logits, 0.9, None if k is None else min(k, codes), None, seeds, 5, 2)
    assert torch.equal(draw(*arguments), reference.sample_logits(*arguments))


def guided_by(host, shown, withheld, scale):
    """The kernel's combination of logits."""
    found, parts = torch.empty_like(shown), (shown.contiguous(), withheld.contiguous())
    host.guide(pointer(parts[0]), pointer(parts[1]), shown.numel(), ctypes.c_float(scale), pointer(found))
    return found


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.0, 7.5, 100.0])
def test_guidance_is_the_references_bit_for_bit(host, scale):
    generator = torch.Generator().manual_seed(0)
    shown, withheld = torch.randn(2, 50_000, generator=generator) * torch.tensor([[3.0], [30.0]])
    shown[:100], withheld[50:150] = -math.inf, -math.inf
    found = guided_by(host, shown, withheld, scale)
    wanted = reference.guided_logits(shown, withheld, torch.tensor(scale))
    same = found.isnan() & wanted.isnan() | (found.view(torch.int32) == wanted.view(torch.int32))
    assert bool(same.all())


@pytest.mark.parametrize("case", [*spec.SMALL_CASES, *spec.CASES[:3]], ids=lambda case: case.name)
@pytest.mark.parametrize("seed", range(3))
def test_the_specs_cases(host, draw, case, seed):
    """All filters together, top-p's edge as the spec of the op has it."""
    inputs = spec.make_inputs(case, torch.device("cpu"), seed)
    logits, seeds, step, position, temperature, k, p, *guidance = inputs
    guided = bool(guidance)
    if guided:
        logits = guided_by(host, *logits.float().chunk(2), float(guidance[0][0]))
    drawn = [draw(logits[:, g], temperature, k, p, seeds, step, position + g) for g in range(logits.shape[1])]
    codes = torch.stack(drawn, dim=1)
    spec.check(torch.cat([codes, codes]) if guided else codes, spec.define(*inputs), inputs)


@QUICK
@given(st.integers(2, 70), st.floats(0.01, 0.99), st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 3.0]))
def test_top_p_with_ties(draw, codes, p, seed, scale):
    """Equal codes: the first few by index stay. Every code that stays is drawn now and then, and no other."""
    generator = torch.Generator().manual_seed(seed)
    row = (torch.randn(1, codes, generator=generator) * scale).round()
    row[0, :2] = row[0, 0]
    seeds = torch.arange(400)
    drawn = draw(row.expand(400, -1), 1.0, None, p, seeds, 0, 0)
    ordered, order = row[0].double().sort(descending=True, stable=True)
    before = (ordered.softmax(0).cumsum(0).roll(1)).where(torch.arange(codes) > 0, -1.0)
    may, must = set(order[before < p + 1e-6].tolist()), reference.filter_logits(row, 1.0, None, p)[0].isfinite()
    assert set(drawn.tolist()) <= may
    if len(may) == int(must.sum()):  # not at the very edge
        assert torch.equal(drawn, reference.sample_logits(row.expand(400, -1), 1.0, None, p, seeds, 0, 0))


@pytest.mark.parametrize("k,p", [(None, None), (5, None), (None, 0.9)])
def test_F15_the_coldest_temperature_draws_the_largest(draw, k, p):
    logits = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(draw(logits, COLDEST, k, p, torch.arange(32), 5, 2), logits.argmax(dim=1))


def test_nan_is_reported_and_never_drawn(draw):
    logits = torch.zeros(50, 9)
    logits[:, 4] = float("nan")
    assert 4 not in draw(logits, 1.0, None, None, torch.arange(50), 0, 0).tolist()


@pytest.mark.slow
def test_a_wrong_rounding_would_be_seen(tmp_path):
    """The gate itself: joined products and sums change the variate's bits."""
    if "fma" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor joins no product and sum")
    joined = compile_library(tmp_path, "-ffp-contract=fast", "-mfma")
    words = torch.arange(0, 2**32, 9999)
    bits, exact, rough = as_words(words), torch.empty(len(words)), torch.empty(len(words))
    joined.gumbels(pointer(bits), len(words), pointer(exact), pointer(rough))
    assert not torch.equal(exact, noise.gumbel(words))
