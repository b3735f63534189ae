"""The head as one operation: the model's own passes and draws, on the reference; and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import golden_pipeline

from hqtvae_fast.backend import BackendError
from hqtvae_fast.engine import whole_head
from hqtvae_fast.engine.cache import KVCache
from hqtvae_fast.engine.loop import SamplingParams, draw_codes
from hqtvae_fast.engine.step import make_caches
from hqtvae_fast.ops import PredictionHead
from hqtvae_fast.ops.prediction_head import HeadWeights, reference, spec

CASE = spec.SMALL_CASES[-1]


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
    weights = whole_head.weights_of(model.head)
    got = reference.logits(h, codes, weights, config.head.num_heads, config.head.gelu)
    for own, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)


def test_the_loop_draws_the_same_codes_through_it(model, monkeypatch):
    """As the engine calls it where HQTVAE_BACKEND asks, but on the reference."""
    params = SamplingParams((0.9, 1.1), (40, None), (None, 0.9))
    arguments = (model, torch.tensor([1, 3]), torch.tensor([7, -8]), params)
    plain = draw_codes(*arguments)
    given = plain[0]
    monkeypatch.setenv("HQTVAE_BACKEND", "prediction_head=cuda")
    monkeypatch.setattr(whole_head, "BACKEND", "cuda")
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
    arguments = (*inputs[:8], tensors, head.num_heads, head.gelu, True, None, None, None, "reference")
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


def test_the_engine_refuses_where_it_was_asked_for_and_does_not_fit(model, monkeypatch):
    assert whole_head.WholeHead.if_asked_for(model, 2) is None
    monkeypatch.setenv("HQTVAE_BACKEND", "prediction_head=cuda")
    with pytest.raises(BackendError, match="expected at most 16 images; got 17"):
        whole_head.WholeHead.if_asked_for(model, 17)
    other = golden_pipeline("class_sequential").transformer
    with pytest.raises(BackendError, match="expected hierarchical decoding over two levels; got sequential"):
        whole_head.WholeHead.if_asked_for(other, 1)
