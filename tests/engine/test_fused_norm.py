"""Skinny products that normalise their own rows and add the residual: the same codes, in fewer kernels."""

from __future__ import annotations

import pytest
import torch
from conftest import golden_pipeline
from test_fused_step import DRAWN, draw, same

from hqtvae_fast.config import preset
from hqtvae_fast.engine import EngineOptions, fused_step
from hqtvae_fast.tune.launches import calls_of_step

JOINED = EngineOptions.read("fused_norm")


@pytest.fixture
def skinny(monkeypatch):
    """As on a GPU, where few rows are our own product's."""
    monkeypatch.setattr(fused_step, "is_skinny", lambda x: True)


@pytest.mark.parametrize("case", DRAWN)
def test_it_draws_the_codes_of_the_reference(case, skinny):
    model = golden_pipeline(case).transformer
    assert same(draw(model, "fused", options=JOINED), draw(model, "reference"))
    assert same(draw(model, "fused", k=1, options=JOINED), draw(model, "reference", k=1))


@pytest.mark.parametrize("words", ["skip_query", "tables", "fused_draw"])
def test_it_goes_with_other_options(words, skinny):
    model = golden_pipeline("class_parallel").transformer
    options = EngineOptions.read(f"fused_norm, {words}")
    assert same(draw(model, "fused", options=options), draw(model, "reference"))


def test_given_top_codes(skinny):
    model = golden_pipeline("class_parallel").transformer
    top = draw(model, "reference")[0]
    joined, plain = (
        draw(model, engine, given_top_codes=top, options=options)
        for engine, options in (("fused", JOINED), ("reference", None))
    )
    assert same(joined, plain)


@pytest.mark.parametrize("batch,most", [(1, 107), (4, 107), (64, 190)])
def test_kernels_of_a_step_are_within_their_budget(batch, most):
    """Preset S: five a block and pass of few rows, two embeddings, a norm, two heads, two draws."""
    calls = calls_of_step(preset("S").transformer, "fused", batch=batch, options=JOINED)
    assert len(calls) <= most
    if batch == 1:
        names = [call.name for call in calls]
        assert (names.count("skinny_linear"), names.count("add_layer_norm")) == (82, 1)


def test_rows_beyond_the_skinny_products_run_as_before():
    config = preset("S").transformer
    plain, joined = (calls_of_step(config, "fused", batch=64, options=options) for options in (None, JOINED))
    assert [call.name for call in plain] == [call.name for call in joined]
    assert torch.bfloat16 in {call.output.dtype for call in joined if isinstance(call.output, torch.Tensor)}
