"""Guided drawings: off at scale 1, the same captured, in any batch and company, from the logits of both branches."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from conftest import engine, golden_pipeline

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.checkpoint import build
from hqtvae_fast.config import PRESETS
from hqtvae_fast.engine import Guidance, SamplingParams, draw_codes, loop
from hqtvae_fast.engine.graph import DrawReplay
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.ops.kernels.sample_logits.reference import guided_logits
from hqtvae_fast.seeds import image_seeds
from hqtvae_fast.tune.launches import count_launches

QUIET = {"output_type": "codes", "progress": False, "top_k": 40, "temperature": 0.9}


@functools.cache
def guided_pipeline(case: str = "class_parallel", null: bool = True, plan: str = "") -> HQTVAEPipeline:
    """Of a golden model's configuration, with a null condition and weights so large that conditions matter."""
    config = golden_pipeline(case).config
    torch.manual_seed(0)
    made = build(dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, null_condition=null)))
    with torch.no_grad():
        for name, value in made.transformer.named_parameters():
            if value.ndim > 1:
                value.normal_(std=0.5 if "head.logits" in name or "prefix" in name else 0.1)
    return HQTVAEPipeline(made, device="cpu", dtype="fp32", plan=engine(plan) if plan else "default")


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def draw(case="class_parallel", plan="", **options):
    pipe = guided_pipeline(case, plan=plan)
    labels = {} if "class_labels" in options else {"class_labels": [4]}
    return pipe(**{**QUIET, **labels, **options}).codes


def null_of(pipe: HQTVAEPipeline, count: int) -> torch.Tensor:
    return torch.full((count,), pipe.transformer.config.null_index)


def rows_of(guidance: float | torch.Tensor, pipe: HQTVAEPipeline, count: int) -> Guidance:
    return Guidance(torch.as_tensor(guidance, dtype=torch.float32).expand(count, 1, 1), null_of(pipe, count))


def test_scale_1_is_no_guidance_bit_for_bit(monkeypatch):
    plain = draw(num_images=3, seed=5)
    assert same(plain, draw(num_images=3, seed=5, guidance_scale=1))
    assert same(plain, draw(num_images=3, seed=5, guidance_scale=[1.0, 1.0]))
    assert not same(plain, draw(num_images=3, seed=5, guidance_scale=4))
    scales = torch.tensor([1.0, 4.0, 1.0]).view(3, 1, 1)
    mixed = draw(num_images=3, seed=5, guidance_scale=scales)
    assert all(torch.equal(level[::2], own[::2]) for level, own in zip(mixed, plain, strict=True))
    assert torch.equal(mixed[0][1], draw(num_images=3, seed=5, guidance_scale=4)[0][1])
    rows: list[int] = []
    inside = loop.make_step
    monkeypatch.setattr(loop, "make_step", lambda model, batch, *how: rows.append(batch) or inside(model, batch, *how))
    draw(num_images=3, guidance_scale=1)  # not a row more is computed
    draw(num_images=3, guidance_scale=2)
    assert rows == [3, 6]


@pytest.mark.parametrize("case", ["class_parallel", "class_sequential", "class_bidirectional", "class_level3"])
def test_guidance_in_any_batch_and_company(case):
    together = draw(case, num_images=3, seed=11, guidance_scale=2.5)
    split = draw(case, num_images=3, seed=11, guidance_scale=2.5, batch_size=2)
    seeds = image_seeds(11, 3).tolist()
    alone = [draw(case, num_images=1, seed=[seed], guidance_scale=2.5) for seed in seeds]
    assert same(together, split)
    assert same(together, tuple(torch.cat(levels) for levels in zip(*alone, strict=True)))


@pytest.mark.parametrize("plan", ["", "tables", "skip_query", "fused_draw"])
def test_captured_guidance_is_the_eager_one(plan):
    eager = draw(plan=f"uncaptured, {plan}".strip(", "), num_images=3, seed=2, guidance_scale=[3.0, 1.5])
    replayed = draw(plan=f"captured, {plan}".strip(", "), num_images=3, seed=2, guidance_scale=[3.0, 1.5])
    assert same(eager, replayed)


def test_a_capture_reads_its_scales_from_the_device():
    pipe, params = guided_pipeline(), SamplingParams((0.9, 0.9), (40, None), (None, 0.9))
    replay = DrawReplay(pipe.transformer, 3, guided=True)
    for scale in (2.0, 1.0, 5.0):
        labels, seeds, led = torch.tensor([1, 2, 3]), image_seeds(int(scale), 3), rows_of(scale, pipe, 3)
        wanted = draw_codes(pipe.transformer, labels, seeds, params, guidance=led)
        assert same(replay(labels, seeds, params, guidance=led), wanted)
    with pytest.raises(ValueError, match="top codes drawn, guided; got 3, top codes drawn"):
        replay(labels, seeds, params)


@pytest.mark.parametrize("options", [{}, {"engine": "fused"}, {"options": EngineOptions(tables=True)}])
def test_guided_steps_draw_from_both_branches(options, monkeypatch):
    """Whatever runs the steps: a code is drawn from what the model says with the condition and without."""
    pipe, params = guided_pipeline(), SamplingParams((1.0, 1.0), (1, 1), (None, None))
    labels, seeds = torch.tensor([2, 5]), image_seeds(0, 2)
    codes = draw_codes(pipe.transformer, labels, seeds, params, guidance=rows_of(3.0, pipe, 2), **options)
    with torch.no_grad():
        shown, withheld = (pipe.transformer(codes, condition).levels for condition in (labels, null_of(pipe, 2)))
    for level, c, u in zip(codes, shown, withheld, strict=True):
        assert torch.equal(guided_logits(c, u, torch.tensor(3.0)).argmax(dim=2), level.flatten(1))
    assert not torch.equal(shown[0].argmax(dim=2), codes[0].flatten(1))


def test_guidance_one_a_level_and_over_the_steps():
    steps = guided_pipeline().transformer.config.num_steps
    assert same(draw(seed=1, guidance_scale=[2.0, 3.0]), draw(seed=1, guidance_scale=[[2.0, 3.0]] * steps))
    late = np.ones((steps, 1))
    late[steps // 2 :] = 4.0
    plain, led = draw(seed=1, top_k=1), draw(seed=1, top_k=1, guidance_scale=late)
    half = plain[0].flatten(1)[:, : steps // 2]
    assert torch.equal(led[0].flatten(1)[:, : steps // 2], half)
    assert not torch.equal(led[0], plain[0])


def test_guidance_with_given_top_codes_streams_and_several_conditions():
    given = draw(seed=3)[0]
    finished = draw(seed=4, given_top_codes=given, guidance_scale=3.0, num_images=2)
    assert torch.equal(finished[0], given.expand(2, -1, -1))
    assert not torch.equal(finished[1], draw(seed=4, given_top_codes=given, num_images=2)[1])
    request = {**QUIET, "class_labels": [1, 2], "num_images": 2, "seed": 9, "guidance_scale": 2.0, "batch_size": 3}
    whole = guided_pipeline()(**request).codes
    streamed = [image.codes for image in guided_pipeline().stream(**request)]
    assert same(whole, tuple(torch.stack(level) for level in zip(*streamed, strict=True)))
    by_class = torch.tensor([2.0, 4.0]).view(2, 1, 1)
    assert torch.equal(guided_pipeline()(**request | {"guidance_scale": by_class}).codes[0][:2], whole[0][:2])


def test_negative_prompts_take_the_null_conditions_place():
    pipe = golden_pipeline("text_parallel")  # without one
    tokens, length = (lambda texts: torch.tensor([[len(text) % 7] * length for text in texts])), 0
    length = pipe.transformer.config.prefix_length
    pipe.tokenizer, kept = tokens, pipe.tokenizer
    try:
        plain = pipe(prompt="abc", **QUIET).codes
        led = pipe(prompt="abc", negative_prompt="abcde", guidance_scale=6.0, **QUIET).codes
        assert not same(plain, led)
        assert same(plain, pipe(prompt="abc", negative_prompt="abc", guidance_scale=6.0, **QUIET).codes)
        with pytest.raises(ValueError, match=r"no null condition .*, or a negative_prompt"):
            pipe(prompt="abc", guidance_scale=6.0, **QUIET)
        with pytest.raises(ValueError, match="negative_prompt: expected a guidance_scale other than 1"):
            pipe(prompt="abc", negative_prompt="abcde", **QUIET)
        with pytest.raises(ValueError, match="negative_prompt: expected a string or a list of strings; got 3"):
            pipe(prompt="abc", negative_prompt=3, guidance_scale=2.0, **QUIET)
    finally:
        pipe.tokenizer = kept


@pytest.mark.parametrize(
    "scale,message",
    [
        (-1, "guidance_scale: expected numbers from 0 to 100.*got -1"),
        ("2", "guidance_scale: expected numbers"),
        ([1.0, float("nan")], "got nan"),
        ([2.0, 2.0, 2.0], r"got \[1, 1, 3\], of .* steps and 2 levels"),
        (torch.ones(7, 1, 1) * 2, "guidance_scale: expected 1; got 7"),
    ],
)
def test_guidance_scales_that_cannot_be(scale, message):
    with pytest.raises(ValueError, match=message):
        draw(guidance_scale=scale)


def test_guidance_without_a_null_condition_says_so():
    with pytest.raises(ValueError, match="guidance_scale: expected 1, as this checkpoint has no null condition"):
        golden_pipeline("class_parallel")(1, guidance_scale=2.0, **QUIET)
    with pytest.raises(ValueError, match="no null condition"):
        golden_pipeline("uncond_reduce")(guidance_scale=2.0, **QUIET)
    with pytest.raises(ValueError, match="negative_prompt: expected none, as this model reads no text"):
        draw(guidance_scale=2.0, negative_prompt="x")
    pipe = golden_pipeline("class_parallel")
    led, params = Guidance.off(torch.tensor([1])), SamplingParams((1.0,) * 2, (None,) * 2, (None,) * 2)
    with pytest.raises(ValueError, match="guidance: expected a model with a null condition"):
        draw_codes(pipe.transformer, torch.tensor([1]), image_seeds(0, 1), params, guidance=led)


@pytest.mark.parametrize("condition", ["class", "text"])
def test_kernels_a_step_with_guidance_are_those_without(condition):
    config = dataclasses.replace(PRESETS["S"].transformer, condition=condition, null_condition=True)
    assert count_launches(config, "fused", batch=64, guided=True) == count_launches(config, "fused", batch=128)
