"""Products above 16 rows in 8 bits: all products of a quantized model, the predictions they move, their kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import GOLDEN, engine, golden_pipeline
from test_fused_step import condition_of, draw, same

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.config import preset
from hqtvae_fast.engine import EngineOptions, SamplingParams, draw_codes, fused_step
from hqtvae_fast.engine.fused_step import FusedStep
from hqtvae_fast.engine.graph import DrawReplay
from hqtvae_fast.model.linear import quantize_linears
from hqtvae_fast.ops.kernels.skinny_linear.reference import QUANTIZED
from hqtvae_fast.seeds import image_seeds
from hqtvae_fast.tune.launches import calls_of_step
from hqtvae_fast.tune.quality import mean_kl, round_rows

SLOW = ("class_parallel_iet1", "uncond_reduce", "class_level3")
CASES = ["class_parallel", *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]
EIGHT = EngineOptions.read("quantized_products=all")
MOST_KL = {"int8": 2e-3, "fp8": 3e-2}
"""Of models so narrow: 1.1e-3 and 1.4e-2 at most, 64 numbers of a row having one scale."""
both = pytest.mark.parametrize("to", QUANTIZED)


def quantized(case="class_parallel", to="int8"):
    return quantize_linears(copy.deepcopy(golden_pipeline(case).transformer), to)


def watched(monkeypatch):
    """The weights' dtypes and rows that products of 8 bits are given."""
    seen, product = [], fused_step.quantized_linear

    def watch(x, weight, *others, **options):
        seen.append((weight.dtype, x.shape[:-1].numel()))
        return product(x, weight, *others, backend="reference", **options)

    monkeypatch.setattr(fused_step, "quantized_linear", watch)
    return seen


def logits(model, options, batch=3):
    """Of all levels of the second step."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = (batch, config.num_steps, config.num_local)
    local = torch.randint(min(config.codebook_sizes), shape, generator=generator)
    with torch.inference_mode():
        step = FusedStep(model, batch, options)
        for index in range(2):
            h_BD = step.body(index, condition_of(config, batch), local)
            parts = [part for group in config.groups for part in step.head(h_BD, local[:, index], group)]
        return [part.logits for part in parts]


@both
@pytest.mark.parametrize("which", ["all", "but_down"])
@pytest.mark.parametrize("case", CASES)
def test_it_draws_the_codes_of_modules_that_round_their_rows(case, which, to, monkeypatch):
    """The same numbers through the model's own modules, as tuning judges them."""
    monkeypatch.setenv("HQTVAE_BACKEND", "packed_linear=reference,quantized_linear=reference")
    model, seen = quantized(case, to), watched(monkeypatch)
    drawn = draw(model, "fused", options=EngineOptions(quantized_products=which))
    assert {dtype for dtype, _ in seen} == {QUANTIZED[to]}
    assert same(drawn, draw(round_rows(copy.deepcopy(model), which), "reference"))


@both
@pytest.mark.parametrize("case", CASES)
def test_predictions_move_a_little(case, to, monkeypatch):
    model, seen = quantized(case, to), watched(monkeypatch)
    kl = mean_kl(logits(model, None), logits(model, EIGHT))
    assert 1e-5 < kl < MOST_KL[to]
    layers = [layer for blocks in (model.body, *_head_blocks(model)) for layer in blocks.layers]
    assert len(seen) >= 2 * 4 * len(layers)  # four products a block, in each of two steps


def _head_blocks(model):
    return [model.head.blocks] if hasattr(model.head, "blocks") else []


def test_it_is_off_by_itself_and_of_no_matter_to_other_weights(monkeypatch):
    seen = watched(monkeypatch)
    model, plain = quantized(), golden_pipeline("class_parallel").transformer
    draw(model, "fused")
    assert same(draw(plain, "fused", options=EIGHT), draw(plain, "fused"))
    assert seen == []


def test_few_rows_on_a_gpu_stay_skinny(monkeypatch):
    seen, model = watched(monkeypatch), quantized()
    monkeypatch.setattr(fused_step, "is_skinny", lambda x: x.shape[0] * x.shape[1] <= 8)
    draw(model, "fused", options=EIGHT, batch=4)  # of whose head's second pass, 16 rows, all products are wider
    assert {rows for _, rows in seen} == {16}


@pytest.mark.parametrize(
    "words", ["skip_query", *(pytest.param(word, marks=pytest.mark.slow) for word in ("fused_draw", "fused_norm"))]
)
def test_it_goes_with_other_options(words):
    model = quantized()
    together = EngineOptions.read(f"quantized_products=all, {words}")
    assert same(draw(model, "fused", options=together), draw(model, "fused", options=EIGHT))


def test_tables_keep_what_was_not_rounded(monkeypatch):
    """Their products are made once, beforehand: fewer are in 8 bits, and predictions move no further."""
    model, seen = quantized(), watched(monkeypatch)
    kl, counts = [], []
    for words in ("quantized_products=all", "quantized_products=all, tables"):
        seen.clear()
        kl.append(mean_kl(logits(model, None), logits(model, EngineOptions.read(words))))
        counts.append(len(seen))
    assert counts[1] < counts[0]
    assert kl[1] < MOST_KL["int8"]


@both
def test_a_replay_draws_what_the_loop_draws(to):
    """Over static buffers, request after request."""
    model = quantized(to=to)
    replay, levels = DrawReplay(model, 3, engine="fused", options=EIGHT), model.config.num_levels
    for seed, labels in enumerate(([4, 4, 4], [1, 2, 3], [9, 0, 9])):
        params = SamplingParams((1.0,) * levels, (20 + seed,) * levels, (None,) * levels)
        got = replay(torch.tensor(labels), image_seeds(seed, 3), params)
        request = (torch.tensor(labels), image_seeds(seed, 3), params)
        assert same(got, draw_codes(model, *request, engine="fused", options=EIGHT))


def test_a_plan_turns_it_on_and_captures_it(monkeypatch):
    seen = watched(monkeypatch)
    how = {"class_labels": [1, 2, 3], "seed": 3, "progress": False, "output_type": "codes"}
    drawn = []
    for text in ("quantized_products=all", "quantized_products=all, captured"):
        pipe = HQTVAEPipeline.from_pretrained(
            GOLDEN / "class_parallel", device="cpu", dtype="fp32", quantization="int8", plan=engine(text)
        )
        drawn.append(pipe(**how).codes)
        assert seen
        seen.clear()
    assert same(*drawn)


@pytest.mark.parametrize(
    "batch, eight",
    [pytest.param(1, 0, marks=pytest.mark.slow), (4, 0), (5, 17), pytest.param(64, 82, marks=pytest.mark.slow)],
)
def test_kernels_of_a_step(batch, eight):
    """Preset S: four products a block, of the body once, of the head twice, and two of logits; where they are in 8 bits
    each is two kernels, and its bias and GELU none."""
    config = preset("S").transformer
    names = [call.name for call in calls_of_step(config, "fused", batch=batch, options=EIGHT, quantization="int8")]
    assert names.count("quantized_linear") == eight
    assert names.count("skinny_linear") == 82 - eight
    assert not {"bias_gelu", "mm", "addmm", "linear", "bmm"} & set(names)
    assert len(names) == 149
    but_down = EngineOptions.read("quantized_products=but_down")
    names = [call.name for call in calls_of_step(config, "fused", batch=batch, options=but_down, quantization="int8")]
    assert names.count("quantized_linear") == {0: 0, 17: 13, 82: 62}[eight]
    plain = [call.name for call in calls_of_step(config, "fused", batch=batch, quantization="int8")]
    assert len(plain) == 149 + (4 if batch == 5 else 20 if batch == 64 else 0)


@both
def test_products_read_the_stored_numbers_and_nothing_wide(to):
    """On fake tensors of a GPU: weights of a byte a value, rows in bf16, and the first pass's products without queries
    read a part of them."""
    options = EngineOptions.read("quantized_products=all, skip_query")
    calls = calls_of_step(preset("S").transformer, "fused", batch=64, options=options, quantization=to)
    products = [call for call in calls if call.name == "quantized_linear"]
    assert {call.inputs[1].dtype for call in products} == {QUANTIZED[to]}
    assert {call.inputs[0].dtype for call in products} == {torch.bfloat16}
    shapes = {tuple(call.inputs[1].shape) for call in products}
    assert shapes == {(4608, 1536), (3072, 1536), (1536, 1536), (6144, 1536), (1536, 6144), (8192, 1536)}
