"""Quantized weights in the engine: read by skinny products, the same numbers to everyone else."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import GOLDEN, golden_pipeline
from test_fused_step import condition_of, draw, same

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine import EngineOptions, fused_step
from hqtvae_fast.engine.fused_step import FusedStep
from hqtvae_fast.model.linear import Linear, quantize_linears
from hqtvae_fast.ops.kernels.skinny_linear.reference import QUANTIZED, quantize

CASES = ["class_parallel", "class_parallel_iet1", "uncond_reduce"]
both = pytest.mark.parametrize("to", QUANTIZED)


def quantized(case, to="int8"):
    return quantize_linears(copy.deepcopy(golden_pipeline(case).transformer), to)


@pytest.fixture(autouse=True)
def weights_alone(monkeypatch):
    """As on a GPU: inputs are not rounded. (A CPU's own int8 products are in tests/ops/test_int8_linear.py.)"""
    monkeypatch.setenv("HQTVAE_BACKEND", "packed_linear=reference")


def skinny_everywhere(monkeypatch):
    """As on a GPU; here the product itself is the reference's."""
    seen = []
    linear = fused_step.skinny_linear

    def watched(x, weight, *bias, **options):
        seen.append((weight.dtype, options["scale"] is not None))
        return linear(x, weight, *bias, **options)

    monkeypatch.setattr(fused_step, "is_skinny", lambda x: True)
    monkeypatch.setattr(fused_step, "skinny_linear", watched)
    return seen


@both
@pytest.mark.parametrize("case", CASES)
def test_skinny_products_read_quantized_numbers_and_give_the_same_codes(case, to, monkeypatch):
    model, plain = quantized(case, to), golden_pipeline(case).transformer
    wanted, many_rows = draw(model, "reference"), draw(model, "fused")
    assert same(many_rows, wanted)
    seen = skinny_everywhere(monkeypatch)
    assert same(draw(model, "fused"), wanted)
    assert set(seen) == {(QUANTIZED[to], True)}
    seen.clear()
    draw(plain, "fused")
    assert set(seen) == {(torch.float32, False)}


@both
def test_logits_of_skinny_products_are_those_of_the_rounded_weights(to, monkeypatch):
    model = quantized("class_parallel", to)
    config, batch = model.config, 2
    local, condition = (
        torch.zeros(batch, config.num_steps, config.num_local, dtype=torch.int64),
        condition_of(model.config, 2),
    )

    def logits():
        with torch.inference_mode():
            step = FusedStep(model, batch)
            h = step.body(0, condition, local)
            return [part.logits for group in config.groups for part in step.head(h, local[:, 0], group)]

    wanted = logits()
    skinny_everywhere(monkeypatch)
    for got, expected in zip(logits(), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [False, True])
def test_skinny_products_are_told_to_prefetch(wanted, monkeypatch):
    monkeypatch.setattr(fused_step, "is_skinny", lambda x: True)
    told, linear = set(), fused_step.skinny_linear

    def watched(*tensors, **options):
        told.add(options.pop("prefetch"))
        return linear(*tensors, **options)

    monkeypatch.setattr(fused_step, "skinny_linear", watched)
    draw(golden_pipeline("class_parallel").transformer, "fused", options=EngineOptions(dependent_launch=wanted))
    assert told == {wanted}


@both
def test_weights_are_rounded_once(to):
    layer = Linear(40, 8).eval()
    stored, scale = quantize(layer.weight.detach(), to)
    assert layer.streamed == (layer.weight, None)
    layer.quantize(to)
    layer.quantize(to)
    layer.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(layer.streamed[0].float(), stored.float())
    assert torch.equal(layer.streamed[1], scale)  # fp32 still, whatever dtype the layer has been in
    torch.testing.assert_close(layer.weight.detach(), stored.float() * scale[:, None], rtol=2**-8, atol=0)
    assert torch.equal(copy.deepcopy(layer).streamed[0].float(), stored.float())


def test_a_weight_in_training_is_not_streamed_as_int8():
    layer = Linear(40, 8)
    layer.quantize()
    assert layer.train().streamed == (layer.weight, None)


@pytest.mark.parametrize("to,step", [("int8", 1 / 250), ("fp8", 1 / 27)])
def test_the_pipelines_option(to, step):
    options = {"device": "cpu", "dtype": "fp32"}
    plain, rounded = (
        HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", **options, quantization=quantization)
        for quantization in (None, to)
    )
    for name, weight in rounded.transformer.named_parameters():
        before = plain.transformer.get_parameter(name).detach()
        is_linear = isinstance(rounded.transformer.get_submodule(name.rpartition(".")[0]), Linear)
        assert torch.equal(weight, before) != (is_linear and name.endswith("weight")), name
        assert float((weight.detach() - before).abs().max()) <= float(before.abs().max()) * step
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.vae.state_dict().values(), rounded.vae.state_dict().values(), strict=True)
    )
    with pytest.raises(ValueError, match="quantization: expected 'int8', 'fp8' or None; got 'int4'"):
        HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", **options, quantization="int4")
