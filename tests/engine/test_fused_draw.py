"""Drawing inside the head's product, where there is neither top-k nor top-p."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import GOLDEN, engine, golden_pipeline
from test_fused_step import condition_of, same

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine import EngineOptions, draw_codes, loop
from hqtvae_fast.engine.fused_step import FusedStep, make_step
from hqtvae_fast.engine.graph import DrawReplay
from hqtvae_fast.engine.loop import SamplingParams
from hqtvae_fast.model.linear import quantize_linears
from hqtvae_fast.seeds import image_seeds

CASES = ["class_parallel", "class_parallel_iet1", "class_sequential", "class_level3", "uncond_reduce", "global_top"]


INSIDE = EngineOptions(fused_draw=True)


def params(levels, top_k=None, top_p=None):
    return SamplingParams((0.9,) * levels, (top_k,) * levels, (top_p,) * levels)


def draw(model, **options):
    condition, sampling = condition_of(model.config, 3), params(model.config.num_levels)
    return draw_codes(model, condition, image_seeds(1, 3), sampling, engine="fused", **options)


@pytest.fixture
def drawn_inside(monkeypatch):
    """How many draws made the product themselves."""
    seen = []
    inside = loop.draw_from_head
    monkeypatch.setattr(loop, "draw_from_head", lambda *args, **kw: seen.append(args) or inside(*args, **kw))
    return seen


@pytest.mark.parametrize("case", CASES)
def test_the_same_codes(case, drawn_inside):
    model = golden_pipeline(case).transformer
    wanted = draw(model)
    assert not drawn_inside
    assert same(draw(model, options=INSIDE), wanted)
    draws = sum(len({model.config.local_levels[q] for q in group}) for group in model.config.groups)
    assert len(drawn_inside) == model.config.num_steps * draws


@pytest.mark.parametrize("filters", [{"top_k": 5}, {"top_p": 0.5}])
def test_filters_are_drawn_from_logits(filters, drawn_inside):
    model = golden_pipeline("class_parallel").transformer
    condition, seeds, sampling = condition_of(model.config, 2), image_seeds(0, 2), params(2, **filters)
    wanted = draw_codes(model, condition, seeds, sampling, engine="fused")
    assert same(draw_codes(model, condition, seeds, sampling, engine="fused", options=INSIDE), wanted)
    assert not drawn_inside


def test_a_capture_refuses_filters():
    model = golden_pipeline("class_parallel").transformer
    replay, condition, seeds = DrawReplay(model, 2, options=INSIDE), condition_of(model.config, 2), image_seeds(0, 2)
    assert same(replay(condition, seeds, params(2)), draw_codes(model, condition, seeds, params(2), engine="fused"))
    with pytest.raises(ValueError, match="expected neither top_k nor top_p"):
        replay(condition, seeds, params(2, top_k=5))


def test_the_pipeline_keeps_a_capture_of_each(drawn_inside):
    where = {"device": "cpu", "dtype": "fp32"}
    plain = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", **where)
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", **where, plan=engine("captured, fused_draw"))
    for filters in ({}, {"top_k": 5}, {}, {"top_p": 0.7}):
        drawn_inside.clear()
        options = {"class_labels": [1, 2], "seed": 3, "output_type": "codes", "progress": False, **filters}
        assert same(pipe(**options).codes, plain(**options).codes)
        assert bool(drawn_inside) == (not filters)
    assert len(pipe._executor.graphs.report()) == 2


def test_quantized_heads_give_logits(drawn_inside):
    """The draw inside the product reads plain weights only, and the quantized ones are half the bytes."""
    model = quantize_linears(copy.deepcopy(golden_pipeline("class_parallel").transformer))
    assert same(draw(model, options=INSIDE), draw(model))
    assert not drawn_inside


def test_the_modules_cannot():
    model = golden_pipeline("class_parallel").transformer
    with pytest.raises(ValueError, match="expected engine 'fused'"):
        make_step(model, 1, "reference", INSIDE)
    assert isinstance(make_step(model, 1, options=INSIDE), FusedStep)


def test_nan_is_reported():
    model = golden_pipeline("class_parallel").transformer
    broken = copy.deepcopy(model)
    torch.nn.init.constant_(broken.norm.weight, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        draw(broken, options=INSIDE)
