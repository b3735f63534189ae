"""The head as one operation: the model's own passes and draws, on the reference; and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import os

import pytest
import torch
from conftest import golden_pipeline

from hqtvae_fast import _cuda
from hqtvae_fast.backend import BackendError
from hqtvae_fast.engine import EngineOptions
from hqtvae_fast.engine import step as step_module
from hqtvae_fast.engine.cache import KVCache, make_caches
from hqtvae_fast.engine.loop import Drawing, SamplingParams, draw_codes
from hqtvae_fast.engine.step import WholeHead
from hqtvae_fast.model.head import head_weights
from hqtvae_fast.model.linear import quantize_linears
from hqtvae_fast.ops import PredictionHead
from hqtvae_fast.ops.kernels.prediction_head import HeadWeights, reference, spec, table
from hqtvae_fast.ops.spec import Case

CASE, QUANTIZED_CASE = spec.SMALL_CASES[-1], spec.SMALL_CASES[4]


@pytest.fixture
def model():
    return golden_pipeline("class_parallel").transformer


@torch.no_grad()
def test_logits_are_the_models(model):
    config = model.config
    h = torch.randn(3, config.dim)
    codes = torch.randint(min(config.codebook_sizes), (3, 5))
    head_cache: KVCache = make_caches(model, 3)[1]
    wanted = [model.head.draw(h, codes, group, head_cache)[0] for group in config.groups]
    weights = head_weights(model.head)
    got = reference.logits(h, codes, weights, config.head.num_heads, config.head.gelu)
    for own, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)


def test_the_loop_draws_the_same_codes_through_it(model, monkeypatch):
    """As the engine calls it where HQTVAE_BACKEND asks, but on the reference."""
    params = SamplingParams((0.9, 1.1), (40, None), (None, 0.9))
    arguments = (model, torch.tensor([1, 3]), torch.tensor([7, -8]), params)
    plain = draw_codes(*arguments)
    given = plain[0]
    others = os.environ.get("HQTVAE_BACKEND", "")
    monkeypatch.setenv("HQTVAE_BACKEND", f"prediction_head=cuda,{others}")
    monkeypatch.setattr(step_module, "HEAD_BACKEND", "cuda")
    monkeypatch.setattr(PredictionHead, "__call__", on_the_reference(PredictionHead.__call__))
    for drawn in (draw_codes(*arguments), draw_codes(*arguments, given_top_codes=given)):
        assert all(torch.equal(own, wanted) for own, wanted in zip(drawn, plain, strict=True))


def on_the_reference(call):
    def run(self, *inputs, backend, **options):
        assert backend == "cuda"
        return call(self, *inputs, backend="reference", **options)

    return run


def test_the_operator():
    inputs = spec.make_inputs(CASE, torch.device("cpu"), 0)
    head, tensors = inputs[-2], list(inputs[-2].weights.named().values())
    arguments = (*inputs[:8], tensors, head.num_heads, head.gelu, True, "", False, None, None, None, "reference")
    torch.library.opcheck(torch.ops.hqtvae_fast.prediction_head, arguments)


def test_a_given_top_code_is_kept():
    h, codes, invalid, *rest, head, _ = spec.make_inputs(CASE, torch.device("cpu"), 0)
    codes[:, 0] = 5
    drawn = spec.run(h, codes, invalid, *rest, head, False, backend="reference")
    assert drawn[:, 0].tolist() == [5, 5]
    assert not torch.equal(drawn[:, 1:], codes[:, 1:])


def test_the_check_sees_a_wrong_code():
    inputs = spec.make_inputs(CASE, torch.device("cpu"), 0)
    wanted = spec.define(*inputs)
    wrong = wanted.clone()
    wrong[0, 3] = (wrong[0, 3] + 1) % CASE["K"]
    with pytest.raises(AssertionError, match=r"drawn, level 1: .* behind the best"):
        spec.check(wrong, wanted, inputs)


@pytest.mark.parametrize("to", ["int8", "fp8"])
def test_a_quantized_model_gives_its_quantized_matrices(model, to, monkeypatch):
    """All of them, those of the logits too; drawn from them the codes are the model's own."""
    model = quantize_linears(copy.deepcopy(model), to)
    weights = head_weights(model.head)
    assert weights.stored == to
    scales = [x for name, x in weights.named().items() if name.endswith("_scale")]
    assert len(scales) == 4 * len(weights.blocks) + 2
    assert all(x is not None and x.dtype is torch.float32 for x in scales)
    monkeypatch.setenv("HQTVAE_BACKEND", "packed_linear=reference")  # a CPU's int8 products round their inputs too
    test_logits_are_the_models(model)
    test_the_loop_draws_the_same_codes_through_it(model, monkeypatch)


def test_quantized_weights_are_checked():
    weights = spec.make_weights(QUANTIZED_CASE, torch.device("cpu"), 0)
    block, level = weights.blocks[0], weights.levels[0]

    def with_block(**parts):
        return dataclasses.replace(weights, blocks=(dataclasses.replace(block, **parts),))

    with pytest.raises(
        ValueError, match=r"blocks.0.up: expected torch.bfloat16, or int8 or fp8 and a scale; got .*int8"
    ):
        with_block(up_scale=None)
    with pytest.raises(ValueError, match=r"blocks.0.up: expected torch.bfloat16, or int8 or fp8 and a scale; got .*bf"):
        with_block(up=block.up.bfloat16())
    with pytest.raises(ValueError, match=r"blocks.0.out_scale: expected torch.float32 on cpu; got torch.bfloat16"):
        with_block(out_scale=block.out_scale.bfloat16())
    short = dataclasses.replace(level, logits_scale=level.logits_scale[1:])
    with pytest.raises(ValueError, match=r"levels.0.logits_scale: expected \[90\]; got \[89\]"):
        dataclasses.replace(weights, levels=(short, weights.levels[1]))
    assert HeadWeights.of(list(weights.named().values())).named() == weights.named()


def test_the_kernel_refuses_quantized_weights_that_it_cannot_take():
    weights = spec.make_weights(QUANTIZED_CASE, torch.device("cpu"), 0)
    assert table.why_not(weights, 8) is None
    block = weights.blocks[0]
    mixed = dataclasses.replace(block, up=(block.up.float() * block.up_scale[:, None]).bfloat16(), up_scale=None)
    mixed_weights = dataclasses.replace(weights, blocks=(mixed,))
    assert "all in int8 or all in fp8; got several" in table.why_not(mixed_weights, 8)
    quantized = spec.make_weights(
        Case("", {"D": 256, "K": 64, "L": 1, "quantized": 1}, torch.bfloat16), weights.start.device, 0
    )
    assert "a width divisible by 512; got 4 heads, width 256" in table.why_not(quantized, 4)


def test_bytes_of_a_step():
    """Of preset S, as the kernel's head comment has them."""
    bf16, int8 = (next(spec.cost(case).bytes for case in spec.CASES if case["quantized"] == kind) for kind in (0, 1))
    assert bf16 == pytest.approx(484.4e6, rel=1e-3)
    assert int8 == pytest.approx(242.7e6, rel=1e-3)


def test_weights_are_checked():
    weights = spec.make_weights(CASE, torch.device("cpu"), 0)
    block = dataclasses.replace(weights.blocks[1], up=weights.blocks[1].up[:, :64])
    with pytest.raises(ValueError, match=r"blocks.1.up: expected \[512, 128\]; got \[512, 64\]"):
        dataclasses.replace(weights, blocks=(weights.blocks[0], block))
    with pytest.raises(ValueError, match=r"positions: expected torch.float32 on cpu, as start; got torch.float64"):
        dataclasses.replace(weights, positions=weights.positions.double())
    assert HeadWeights.of(list(weights.named().values())).named() == weights.named()


def test_inputs_are_checked_and_the_kernel_says_why_it_cannot_run():
    inputs = spec.make_inputs(CASE, torch.device("cpu"), 0)
    with pytest.raises(ValueError, match=r"h: expected torch.float32 \[1, 128\] on cpu; got .* \[1, 64\]"):
        spec.run(inputs[0][:1, :64], *inputs[1:])
    with pytest.raises(BackendError, match=r"expected weights in bf16; got torch.float32"):
        spec.run(*inputs, backend="cuda")
    bf16 = spec.make_inputs(spec.SMALL_CASES[0], torch.device("cpu"), 0)
    with pytest.raises(BackendError, match="expected tensors on a CUDA device; got cpu"):
        spec.run(*bf16, backend="cuda")


def test_the_engines_option_makes_the_launch_a_dependent_one(model, monkeypatch):
    monkeypatch.setenv("HQTVAE_BACKEND", "prediction_head=cuda")
    for wanted in (False, True):
        options = EngineOptions(dependent_launch=wanted)
        params = SamplingParams((1.0, 1.0), (None, None), (None, None))
        drawing = Drawing.make(model, torch.tensor([1]), torch.tensor([7]), params, options=options)
        assert drawing.whole_head.head.dependent == wanted


@pytest.mark.parametrize(
    "loader,capability,reason",
    [
        (False, (9, 0), "expected kernels compiled when installed for a dependent launch; got CuPy"),
        (True, (8, 9), "expected compute capability 9.0 or above for a dependent launch; got 8.9"),
        (True, (9, 0), None),
    ],
)
def test_a_dependent_launch_runs_where_it_can_or_says_why_not(loader, capability, reason, monkeypatch):
    kernels = _cuda.Kernels("CuPy, compiled on first use", lambda name: None, loader)
    monkeypatch.setattr(_cuda, "load", lambda: (kernels, ""))
    monkeypatch.setattr(_cuda, "why_not", lambda *inputs: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    inputs = spec.make_inputs(spec.SMALL_CASES[0], torch.device("cpu"), 0)
    for dependent in (False, True):
        head = dataclasses.replace(inputs[-2], dependent=dependent)
        found = spec.cuda.why_not(*inputs[:-2], head, True)
        assert found is None if reason is None or not dependent else found.startswith(reason)


def test_a_launch_is_told_so(monkeypatch):
    told = []
    monkeypatch.setattr(_cuda, "operator", lambda name: lambda *arguments: told.append(arguments[-4:]))
    monkeypatch.setattr(spec.cuda, "plan", lambda device, stored: (132, 42))
    inputs = spec.make_inputs(spec.SMALL_CASES[0], torch.device("cpu"), 0)
    for dependent in (False, True):
        spec.cuda.launch(torch.zeros(1), *inputs[:8], True, "int8", dependent)
    assert told == [(1, 132, 42, False), (1, 132, 42, True)]


def test_the_engine_refuses_where_it_was_asked_for_and_does_not_fit(model, monkeypatch):
    assert WholeHead.if_asked_for(model, 2) is None
    monkeypatch.setenv("HQTVAE_BACKEND", "prediction_head=cuda")
    with pytest.raises(BackendError, match="expected at most 16 images; got 17"):
        WholeHead.if_asked_for(model, 17)
    other = golden_pipeline("class_sequential").transformer
    with pytest.raises(BackendError, match="expected hierarchical decoding over two levels; got sequential"):
        WholeHead.if_asked_for(other, 1)
