"""Skinny products of up to 128 rows, where that is asked for: the same codes, in fewer kernels."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import golden_pipeline
from test_fused_step import SOME, draw, same

from hqtvae_fast.config import preset
from hqtvae_fast.engine import EngineOptions, fused_step
from hqtvae_fast.engine.fused_step import is_streamed
from hqtvae_fast.plan import Plan
from hqtvae_fast.tune.launches import calls_of_step

STREAMED = EngineOptions.read("streamed_rows")
JOINED = EngineOptions.read("streamed_rows, fused_norm")


@pytest.fixture
def streamed(monkeypatch):
    """As on a GPU, where more than 16 rows are our own product's."""
    monkeypatch.setattr(fused_step, "is_streamed", lambda x: True)


@pytest.fixture
def multiplied(monkeypatch):
    """What our own products are told: (a norm, moments, a residual)."""
    told, linear = Counter(), fused_step.skinny_linear

    def watched(*tensors, **how):
        told[tuple(how.get(name) is not None for name in ("norm", "moments", "residual"))] += 1
        return linear(*tensors, **how)

    monkeypatch.setattr(fused_step, "skinny_linear", watched)
    return told


@pytest.mark.parametrize("case", SOME)
@pytest.mark.parametrize("options", [STREAMED, JOINED], ids=str)
def test_it_draws_the_codes_of_the_reference(case, options, streamed, multiplied):
    model = golden_pipeline(case).transformer
    assert same(draw(model, "fused", options=options), draw(model, "reference"))
    assert same(draw(model, "fused", k=1, options=options), draw(model, "reference", k=1))
    assert multiplied
    norms = {told[1] for told in multiplied if told[0]}
    assert norms == (set() if options is STREAMED else {True})  # every norm in a product is told its moments


@pytest.mark.parametrize("words", ["skip_query", "tables", "fused_draw"])
def test_it_goes_with_other_options(words, streamed):
    model = golden_pipeline("class_parallel").transformer
    options = EngineOptions.read(f"streamed_rows, fused_norm, {words}")
    assert same(draw(model, "fused", options=options), draw(model, "reference"))


def test_moments_are_of_the_rows_that_are_normalised(streamed, monkeypatch):
    """Wherever a norm is told moments, they are x's, whoever left them."""
    linear, seen = fused_step.skinny_linear, []

    def watched(x, weight, *others, norm=None, moments=None, **how):
        if norm is not None:
            wide = x.reshape(-1, x.shape[-1]).double()
            mean = torch.stack([own.mean(1) for own in wide.split(64, 1)])
            torch.testing.assert_close(moments[0].double(), mean, rtol=1e-5, atol=1e-5)
            seen.append(x.shape)
        return linear(x, weight, *others, norm=norm, moments=moments, **how)

    monkeypatch.setattr(fused_step, "skinny_linear", watched)
    for case in ("class_parallel", "class_level3"):
        draw(golden_pipeline(case).transformer, "fused", options=JOINED)
    assert seen


def test_without_the_word_nothing_changes():
    config = preset("S").transformer
    for batch in (17, 50, 128):
        plain, joined = (
            calls_of_step(config, "fused", batch=batch, options=options)
            for options in (None, EngineOptions.read("fused_norm"))
        )
        names = [call.name for call in plain]
        assert names == [call.name for call in joined]
        assert len(names) == 169
        assert "skinny_linear" not in names


@pytest.mark.parametrize("batch, kernels", [(32, 110), (50, 122), (128, 122)])
def test_kernels_of_a_step_are_within_their_budget(batch, kernels):
    """Preset S: five a block of up to 128 rows and a norm before its stack, eight of more: four images or more for each
    32 of the head's second pass."""
    calls = calls_of_step(preset("S").transformer, "fused", batch=batch, options=JOINED)
    assert len(calls) == kernels <= 130
    rows = {call.inputs[0].shape[:2].numel() for call in calls if call.name == "skinny_linear"}
    assert rows == ({32, 128} if batch == 32 else {batch})
    assert len(calls_of_step(preset("S").transformer, "fused", batch=batch, options=STREAMED)) <= 169 - 16


def test_how_many_rows_it_takes():
    rows = {count: is_streamed(torch.empty(count, 1, 8, device="meta")) for count in (16, 17, 128, 129)}
    assert not any(rows.values())  # not on a GPU
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        asked = [is_streamed(torch.empty(count, 1, 8, device="cuda")) for count in (16, 17, 128, 129)]
        assert asked == [False, True, True, False]
        assert is_streamed(torch.empty(32, 4, 8, device="cuda"))


def test_it_is_another_plan():
    """Whose captures are others."""
    assert Plan().with_engine("streamed_rows").id != Plan().id
