"""The operations of a sampling step on a CPU: within the tolerance that kernels are held to, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import (
    add_layer_norm,
    bias_gelu,
    decode_attention,
    embed_codes,
    local_attention,
    sample_logits,
    skinny_linear,
)
from hqtvae_fast.ops.kernels.local_attention.reference import level_mask
from hqtvae_fast.ops.kernels.skinny_linear.reference import quantize
from hqtvae_fast.ops.spec import all_specs

CPU = torch.device("cpu")
OPS = [
    "add_layer_norm",
    "bias_gelu",
    "decode_attention",
    "embed_codes",
    "skinny_linear",
    "local_attention",
    "sample_logits",
]
SPECS = {name: spec for name, spec in all_specs().items() if name in OPS}
SMALL = [(op, case) for op in OPS for case in SPECS[op].small]


def ours(spec, inputs):
    """Our kernel for these inputs: of the backends "triton" and "triton/int8"."""
    names = (each.name for each in spec.backends if each.base == "triton" and each.why_not(*inputs) is None)
    return next(names)


def first(result):
    return result if isinstance(result, torch.Tensor) else result[0]


@pytest.mark.parametrize("op,case", SMALL, ids=lambda value: getattr(value, "name", value))
def test_spec(op, case):
    """The reference is within the tolerance; what is off by a little more is not."""
    spec = SPECS[op]
    inputs = [spec.make_inputs(case, CPU, 0) for _ in range(4)]
    wanted = spec.reference(*inputs[0])
    got = spec.run(*inputs[1], backend="reference")
    spec.check(got, wanted, inputs[2])
    assert first(got).dtype == (torch.int64 if op == "sample_logits" else case.dtype)
    if case.sizes.get("K") == 1:
        return  # there is nothing else to draw
    output = first(got)
    wrong = output.clone()
    if op == "sample_logits":
        wrong.view(-1)[-1] = (wrong.view(-1)[-1] + 1) % case["K"]
    else:
        wrong.view(-1)[-1] += 0.3
    rest = () if isinstance(got, torch.Tensor) else got[1:]
    with pytest.raises(AssertionError):
        spec.check(wrong if isinstance(got, torch.Tensor) else (wrong, *rest), wanted, inputs[3])
    assert spec.cost(case).bytes > 0


@pytest.mark.parametrize("op", OPS)
def test_baselines_give_the_same(op):
    """In fp32 on the first small case: what a benchmark compares with must be the same operation."""
    spec = SPECS[op]
    case = next(case for case in spec.small if case.dtype is torch.float32)
    for name, baseline in spec.baselines.items():
        if name in ("flash-attn", "xformers"):  # tests/ops/test_third_party.py
            continue
        if "multinomial" in name:  # other noise: it can only stay within the allowed set
            continue
        got, wanted = (first(run(*spec.make_inputs(case, CPU, 0))) for run in (baseline, spec.reference))
        torch.testing.assert_close(got.double().view(wanted.shape), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_real_cases_have_inputs_of_their_sizes(op):
    """Made without memory: shapes alone."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    spec = SPECS[op]
    names = [case.name for case in spec.cases]
    assert len(set(names)) == len(names)
    for case in spec.cases[:2]:
        with FakeTensorMode(allow_non_fake_inputs=True):
            inputs = spec.make_inputs(case, CPU, 0)
        assert any(isinstance(x, torch.Tensor) and x.numel() for x in inputs)


@pytest.mark.parametrize("op", OPS)
def test_triton_is_refused_on_a_cpu_with_the_reason(op, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    spec = SPECS[op]
    with pytest.raises(BackendError, match=r"'triton', which cannot run: expected tensors on a CUDA device"):
        spec.run(*spec.make_inputs(spec.small[0], CPU, 0), backend="triton")
    monkeypatch.setenv("HQTVAE_BACKEND", f"{op}=triton")
    with pytest.raises(BackendError, match=f"{op}: HQTVAE_BACKEND asked for backend 'triton'"):
        spec.run(*spec.make_inputs(spec.small[0], CPU, 0))


def registered():
    """The operators as they are called, by name."""
    x = torch.randn(3, 2, 8)
    vector, qkv, cache = torch.randn(8), torch.randn(2, 1, 3, 2, 8), torch.randn(2, 2, 6, 8)
    codes, table = torch.randint(9, (3, 5)), torch.randn(9, 8)
    sources = torch.arange(5, dtype=torch.int32)[None]
    numbers = (torch.tensor(3), torch.tensor(1), torch.tensor(0.9), torch.tensor(4), torch.tensor(0.8))
    drawn = (torch.zeros(3, 2, dtype=torch.int64), torch.zeros((), dtype=torch.bool), torch.arange(3), *numbers)
    return {
        "add_layer_norm": (x, x + 1, vector, vector, vector, 1e-5, "reference"),
        "bias_gelu": (x, vector, "exact", "reference"),
        "local_attention": (qkv, None, cache, cache.clone(), 2, "full", "reference"),
        "decode_attention": (qkv, torch.randn(48), cache, cache.clone(), 0, torch.tensor(3), None, "reference"),
        "skinny_linear": (
            x,
            table,
            None,
            None,
            None,
            "exact",
            False,
            vector,
            vector,
            1e-5,
            None,
            None,
            torch.zeros(9),
            torch.zeros(9, dtype=torch.int32),
            "reference",
        ),
        "embed_codes": (codes, [table, table.clone()], sources, table[:4], torch.tensor(2), "mean", "reference"),
        "sample_logits": (x, *drawn, None, "cpu"),
    }


@pytest.mark.parametrize("op", OPS)
def test_operator(op):
    torch.library.opcheck(getattr(torch.ops.hqtvae_fast, op).default, registered()[op])


# ------------------------------------------------------------------------------------------------------------- refusals

QKV = torch.zeros(2, 4, 3, 2, 8)
CACHE = torch.zeros(2, 2, 5, 8)
CODES, TABLE = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(7, 8)
SOURCES = torch.zeros(4, 1, dtype=torch.int32)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: add_layer_norm(TABLE, None, None, torch.ones(7), torch.ones(8)), "weight: expected"),
        (lambda: add_layer_norm(TABLE, TABLE[:2], None, torch.ones(8), torch.ones(8)), r"added: .*got .*\[2, 8\]"),
        (lambda: bias_gelu(TABLE, torch.ones(8), "tanh"), "form: expected one of exact, sigmoid; got 'tanh'"),
        (lambda: bias_gelu(TABLE, torch.ones(7)), r"bias: expected torch.float32 \[8\]; got torch.float32 \[7\]"),
        (lambda: local_attention(TABLE), r"qkv: expected contiguous \[B, T, 3, H, E\]; got \[7, 8\]"),
        (lambda: local_attention(QKV, mask="causal"), "mask: expected one of full, levels; got 'causal'"),
        (lambda: local_attention(QKV, None, CACHE, None), "expected both keys and values"),
        (lambda: local_attention(QKV, start=1), "or neither and start = 0"),
        (lambda: local_attention(QKV, None, CACHE, CACHE, 2), r"C >= 6; got torch.float32 \[2, 2, 5, 8\]"),
        (lambda: local_attention(QKV, torch.ones(8)), r"bias: expected torch.float32 \[48\]"),
        (lambda: local_attention(QKV[:, :1, 1:].contiguous(), torch.ones(48)), r"bias: expected torch.float32 \[32\]"),
        (lambda: local_attention(QKV[:, :, 1:].contiguous()), "qkv: expected queries .*; got 4 and none"),
        (lambda: local_attention(QKV[:, :1, 1:].contiguous(), None, CACHE, CACHE, 2), "expected queries .*; got 3"),
        (lambda: local_attention(QKV[:, :1, :1].contiguous()), r"qkv: expected contiguous .*; got \[2, 1, 1, 2, 8\]"),
        (lambda: decode_attention(QKV, CACHE, CACHE, 3), r"C >= 7; got \[2, 2, 5, 8\]"),
        (lambda: embed_codes(CODES, [TABLE], SOURCES, TABLE[:4], mode="max"), "mode: expected one of sum, mean"),
        (lambda: embed_codes(CODES, [TABLE] * 2, SOURCES, TABLE[:4], mode="interleave"), r"tables: .*widths \[8, 2\]"),
        (lambda: embed_codes(CODES, [TABLE], SOURCES.long(), TABLE[:4]), r"int32 \[G, S\]; got"),
        (lambda: embed_codes(CODES, [TABLE], SOURCES, TABLE[:3]), r"rows: expected .*\[R \* 4, 8\]; got \[3, 8\]"),
        (lambda: skinny_linear(TABLE, torch.zeros(4, 7)), r"expected .*; got \[7, 8\] and \[4, 7\]"),
        (lambda: skinny_linear(TABLE, TABLE.to(torch.int8)), "weight: expected torch.float32, or int8"),
        (lambda: skinny_linear(TABLE, TABLE, torch.ones(8)), r"bias: expected torch.float32 \[7\]"),
        (lambda: skinny_linear(TABLE, TABLE, residual=torch.ones(7, 8)), r"residual: expected torch.float32 \[7, 7\]"),
        (lambda: sample_logits(torch.zeros(8), seeds=CODES[0], step=0, position=0), r"expected \[B, K\] or"),
        (
            lambda: sample_logits(TABLE, seeds=torch.arange(7), step=0, position=0, out=torch.zeros(7)),
            r"out: expected int64 \[7\]; got torch.float32 \[7\]",
        ),
    ],
)  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------------------------------- meanings


def test_position_zero_sees_itself_alone():
    qkv = torch.randn(2, 1, 3, 2, 8)
    keys, values = torch.full((2, 2, 2, 5, 8), 7.0)
    y = local_attention(qkv, None, keys, values)
    assert torch.equal(y.view(2, 2, 8), qkv[:, 0, 2])
    assert torch.equal(keys[:, :, 0], qkv[:, 0, 1])


def test_position_zero_needs_no_query():
    qkv, bias = torch.randn(2, 1, 3, 2, 8), torch.randn(48)
    with_query, without = torch.zeros(2, 2, 2, 2, 5, 8)
    y = local_attention(qkv, bias, *with_query)
    assert torch.equal(local_attention(qkv[:, :, 1:].contiguous(), bias[16:], *without), y)
    assert torch.equal(without, with_query)


def test_level_mask():
    mask = level_mask(0, 21, torch.device("cpu"))
    assert mask.sum(dim=1).tolist() == [1] + [5] * 4 + [21] * 16
    assert level_mask(1, 4, torch.device("cpu")).all()


def test_passes_over_levels_equal_one_masked_pass():
    """Position 0, then 1-4, then 5-20, cached, against all 21 at once under the mask."""
    qkv, bias = torch.randn(2, 21, 3, 2, 8), torch.randn(48)
    keys, values = torch.zeros(2, 2, 2, 21, 8)
    whole = local_attention(qkv, bias, mask="levels")
    for start, end in ((0, 1), (1, 5), (5, 21)):
        part = local_attention(qkv[:, start:end].contiguous(), bias, keys, values, start)
        torch.testing.assert_close(part, whole[:, start:end])


def test_positions_of_one_image_are_drawn_as_rows_are():
    """[B, G, K] and G calls of [B, K] are the same draws, and land in any strides."""
    logits, seeds = torch.randn(5, 3, 20), torch.arange(5)
    together = sample_logits(logits, top_k=9, seeds=seeds, step=4, position=2)
    alone = [sample_logits(logits[:, g], top_k=9, seeds=seeds, step=4, position=2 + g) for g in range(3)]
    assert torch.equal(together, torch.stack(alone, dim=1))
    local = torch.full((5, 7), -1)
    sample_logits(logits, top_k=9, seeds=seeds, step=torch.tensor(4), position=torch.tensor(2), out=local[:, 2:5])
    assert torch.equal(local[:, 2:5], together)
    assert (local[:, :2] == -1).all()


def test_a_start_on_the_device_is_the_start():
    qkv, cache = torch.randn(2, 1, 3, 2, 8), torch.randn(2, 2, 2, 6, 8)
    moved, plain = cache.clone(), cache.clone()
    y = decode_attention(qkv, *moved, torch.tensor(4))
    assert torch.equal(y, decode_attention(qkv, *plain, 4))
    assert torch.equal(moved, plain)


def test_int8_weights_are_within_half_a_step():
    weight = torch.randn(20, 64) * torch.logspace(-6, 2, 20)[:, None]
    weight[3] = 0
    stored, scale = quantize(weight, "int8")
    assert stored.abs().max() == 127
    assert ((stored * scale[:, None] - weight).abs() <= 0.501 * scale[:, None]).all()
    x = torch.randn(5, 64)
    exact = x @ weight.T
    torch.testing.assert_close(
        skinny_linear(x, stored, scale=scale), exact, rtol=0, atol=0.05 * float(exact.abs().max())
    )


def test_fp8_weights_are_within_half_of_their_last_bit():
    """Three bits after the leading one; below 2^-6 of the dtype's own scale, steps of 2^-9."""
    weight = torch.randn(20, 64) * torch.logspace(-6, 2, 20)[:, None]
    weight[3] = 0
    stored, scale = quantize(weight, "fp8")
    assert stored.float().abs().max() == 448
    error = (stored.float() * scale[:, None] - weight).abs()
    assert (error <= torch.maximum(2.0**-4 * weight.abs(), 2.0**-10 * scale[:, None]) * 1.001).all()
    with pytest.raises(ValueError, match="quantization: expected one of int8, fp8; got 'int4'"):
        quantize(weight, "int4")


# ------------------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("op,case", SMALL, ids=lambda value: getattr(value, "name", value))
def test_the_same_twice_on_a_gpu(op, case):
    spec, device = SPECS[op], torch.device("cuda")
    inputs = [spec.make_inputs(case, device, 0) for _ in range(2)]
    got, again = (spec.run(*each, backend=ours(spec, each)) for each in inputs)
    assert torch.equal(first(got), first(again))


@pytest.mark.gpu
@pytest.mark.parametrize("top_k,top_p", [(None, None), (8, None), (None, 0.8), (12, 0.9), (20, 1.0)])
def test_distribution_of_five_million_draws_on_a_gpu(top_k, top_p):
    from scipy import stats

    from hqtvae_fast.ops.kernels.sample_logits.reference import filter_logits

    logits, count = torch.randn(20, generator=torch.Generator().manual_seed(1)) * 1.5, 5_000_000
    logits[3] = logits[11]
    rows = logits.cuda().expand(count, -1)
    options = {"temperature": 0.9, "top_k": top_k, "top_p": top_p, "step": 1, "position": 0}
    drawn = sample_logits(rows, seeds=torch.arange(count, device="cuda"), backend="triton", **options)
    observed = torch.bincount(drawn, minlength=20).cpu()
    probabilities = filter_logits(logits[None], 0.9, top_k, top_p)[0].double().softmax(0)
    allowed = probabilities > 0
    assert int(observed[~allowed].sum()) == 0
    assert stats.chisquare(observed[allowed], probabilities[allowed] * count).pvalue > 0.001


@pytest.mark.gpu
def test_parts_of_a_product_meet_in_one_workspace_on_a_gpu():
    """A thousand products after each other, whose counters must be back at zero each time."""
    from hqtvae_fast.ops.kernels.skinny_linear.triton import Workspace

    x, weight = torch.randn(3, 1536, device="cuda").bfloat16(), torch.randn(1536, 1536, device="cuda").bfloat16()
    workspace = Workspace.on(x.device)
    results = [skinny_linear(x, weight, workspace=workspace, backend="triton") for _ in range(1000)]
    assert all(torch.equal(result, results[0]) for result in results)
    assert not workspace.counters.any()


needs_hopper = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0),
    reason="programmatic dependent launch: needs compute capability 9.0",
)


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("to", [None, "int8", "fp8"])
def test_a_dependent_launch_gives_the_same_bits_on_a_gpu(to):
    """Chains of products, each of which reads the one before it: without its wait a kernel would read old numbers."""
    from hqtvae_fast.ops.kernels.skinny_linear.triton import Workspace

    weights, x = [torch.randn(1536, 1536, device="cuda") / 39 for _ in range(4)], torch.randn(3, 1536, device="cuda")
    layers = [(weight.bfloat16(), None) if to is None else quantize(weight, to) for weight in weights]
    workspace, ends = Workspace.on(x.device), {}
    for prefetch in (False, True):
        y = x.bfloat16()
        for index in range(400):
            weight, scale = layers[index % 4]
            y = skinny_linear(y, weight, scale=scale, residual=x.bfloat16(), workspace=workspace, prefetch=prefetch)
            y = add_layer_norm(y, None, None, torch.ones_like(y[0]), torch.zeros_like(y[0]))[1]
        ends[prefetch] = y
    assert bool(ends[True].isfinite().all())
    assert torch.equal(ends[True], ends[False])


def test_a_prefetch_where_there_is_none_is_refused():
    x, weight = torch.randn(2, 64), torch.randn(32, 64)
    plain = skinny_linear(x, weight)
    assert torch.equal(skinny_linear(x, weight, prefetch=True, backend="reference"), plain)
    with pytest.raises(BackendError, match=r"compute capability 9\.0"):
        skinny_linear(x, weight, prefetch=True, backend="triton")
