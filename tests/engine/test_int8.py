"""int8 weights in the engine: read by products of few rows, the same numbers to everyone else."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import GOLDEN, golden_pipeline
from test_fused_step import condition_of, draw, same

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine import fused_step
from hqtvae_fast.engine.fused_step import FusedStep
from hqtvae_fast.ops.linear import Linear, quantize_linears
from hqtvae_fast.ops.linear.reference import quantize_int8

CASES = ["class_parallel", "class_parallel_iet1", "uncond_reduce"]


def quantized(case):
    return quantize_linears(copy.deepcopy(golden_pipeline(case).transformer))


def few_rows_everywhere(monkeypatch):
    """As on a GPU; here the product itself is the reference's."""
    seen = []
    linear = fused_step.linear

    def watched(x, weight, *bias, **options):
        seen.append((weight.dtype, options["scale"] is not None))
        return linear(x, weight, *bias, **options)

    monkeypatch.setattr(FusedStep, "_few", lambda self, x: True)
    monkeypatch.setattr(fused_step, "linear", watched)
    return seen


@pytest.mark.parametrize("case", CASES)
def test_few_rows_read_int8_and_give_the_same_codes(case, monkeypatch):
    model, plain = quantized(case), golden_pipeline(case).transformer
    wanted, many_rows = draw(model, "reference"), draw(model, "fused")
    assert same(many_rows, wanted)
    seen = few_rows_everywhere(monkeypatch)
    assert same(draw(model, "fused"), wanted)
    assert set(seen) == {(torch.int8, True)}
    seen.clear()
    draw(plain, "fused")
    assert set(seen) == {(torch.float32, False)}


def test_logits_of_few_rows_are_those_of_the_rounded_weights(monkeypatch):
    model = quantized("class_parallel")
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
    few_rows_everywhere(monkeypatch)
    for got, expected in zip(logits(), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_weights_are_rounded_once():
    layer = Linear(40, 8).eval()
    stored, scale = quantize_int8(layer.weight.detach())
    assert layer.streamed == (layer.weight, None)
    layer.quantize()
    layer.quantize()
    layer.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(layer.streamed[0], stored)
    assert torch.equal(layer.streamed[1], scale)  # fp32 still, whatever dtype the layer has been in
    torch.testing.assert_close(layer.weight.detach(), stored * scale[:, None], rtol=2**-8, atol=0)
    assert torch.equal(copy.deepcopy(layer).streamed[0], stored)


@pytest.mark.parametrize(
    "change", [lambda layer: layer.train(), lambda layer: layer.load_state_dict(layer.state_dict())]
)
def test_a_weight_that_changes_drops_the_int8_copy(change):
    layer = Linear(40, 8)
    layer.quantize()
    change(layer)
    assert layer.streamed == (layer.weight, None)


def test_the_pipelines_option():
    options = {"device": "cpu", "dtype": "fp32"}
    plain, narrow = (
        HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", **options, quantization=quantization)
        for quantization in (None, "int8")
    )
    for name, weight in narrow.transformer.named_parameters():
        before = plain.transformer.get_parameter(name).detach()
        is_linear = isinstance(narrow.transformer.get_submodule(name.rpartition(".")[0]), Linear)
        assert torch.equal(weight, before) != (is_linear and name.endswith("weight")), name
        assert float((weight.detach() - before).abs().max()) <= float(before.abs().max()) / 250
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.vae.state_dict().values(), narrow.vae.state_dict().values(), strict=True)
    )
    with pytest.raises(ValueError, match="quantization: expected 'int8' or None; got 'int4'"):
        HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", **options, quantization="int4")
