"""The step on fused operations: the same codes as the model's own modules give, and its budget of kernels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import CASES, GOLDEN, engine, golden_pipeline, golden_values

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.checkpoint_config import read_config
from hqtvae_fast.config import preset
from hqtvae_fast.engine import EngineOptions, SamplingParams, draw_codes
from hqtvae_fast.engine.fused_step import FusedStep, make_step
from hqtvae_fast.engine.step import ReferenceStep
from hqtvae_fast.seeds import image_seeds
from hqtvae_fast.tune.launches import count_launches, launches_a_block

CONFIGS = {case: read_config(GOLDEN / case).transformer for case in CASES}
DRAWN = [case for case, config in CONFIGS.items() if config is not None and not config.scrambled_middle]
QUICK = ("class_parallel", "text_parallel")
SOME = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in DRAWN if case not in QUICK)]
"""The same, most of them in slow runs alone: for words of the engine that do the same to all."""


def condition_of(config, batch):
    """Any labels or tokens, the same every time."""
    if config.condition == "none":
        return None
    generator = torch.Generator().manual_seed(0)
    if config.condition == "class":
        return torch.randint(config.num_classes, (batch,), generator=generator)
    return torch.randint(config.prefix_vocab_size, (batch, config.prefix_length), generator=generator)


def draw(model, engine, k=40, seed=7, batch=3, **options):
    levels = model.config.num_levels
    params = SamplingParams((0.9,) * levels, (k,) * levels, (0.95,) * levels)
    condition = condition_of(model.config, batch)
    return draw_codes(model, condition, image_seeds(seed, batch), params, engine=engine, **options)


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("case", DRAWN)
def test_the_fused_step_draws_the_codes_of_the_reference(case):
    model = golden_pipeline(case).transformer
    assert same(draw(model, "fused"), draw(model, "reference"))
    assert same(draw(model, "fused", k=1), draw(model, "reference", k=1))
    assert not same(draw(model, "fused"), draw(model, "fused", seed=8))


@pytest.mark.parametrize("case", ["class_parallel", "class_parallel_iet1", "uncond_reduce"])
def test_greedy_codes_of_the_released_implementation(case):
    """As they are in the golden file, through the fused step."""
    golden, model = golden_values(case), golden_pipeline(case).transformer
    labels = golden.get("greedy_label")
    batch = len(golden["greedy_top"])
    condition = None if model.config.condition == "none" else labels.long().view(-1).expand(batch)
    params = SamplingParams((1.0,) * 2, (1,) * 2, (None,) * 2)
    top, bottom = draw_codes(model, condition, image_seeds(0, batch), params, engine="fused")
    assert torch.equal(top.flatten(1), golden["greedy_top"].view(batch, -1))
    side = model.config.side
    windows = bottom.view(batch, side, 2, side, 2).transpose(2, 3).reshape(batch, side * side, 4)
    assert torch.equal(windows, golden["greedy_bottom"].view(batch, side * side, 4))


def test_given_top_codes():
    model = golden_pipeline("class_parallel").transformer
    top = draw(model, "reference")[0]
    fused, plain = (draw(model, engine, seed=9, given_top_codes=top) for engine in ("fused", "reference"))
    assert torch.equal(fused[0], top)
    assert same(fused, plain)


@pytest.mark.parametrize("case", DRAWN)
def test_without_the_first_query(case):
    model = golden_pipeline(case).transformer
    options = EngineOptions(skip_query=True)
    assert same(draw(model, None, options=options), draw(model, "reference"))
    if model.config.decoding != "global":
        top = draw(model, "reference")[0]
        given = [draw(model, None, options=which, given_top_codes=top) for which in (options, EngineOptions())]
        assert same(*given)


def test_the_pipeline_passes_the_option_on(monkeypatch):
    found, told = [], []
    run = FusedStep._run
    monkeypatch.setattr(
        FusedStep, "_run", lambda self, *inputs: (told.append(self.options.skip_query), run(self, *inputs))[1]
    )
    for text in ("", "skip_query", "skip_query, captured"):
        plan = engine(text)
        pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32", plan=plan)
        found.append(pipe(class_labels=[1, 0], seed=3, output_type="codes", progress=False).codes)
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert set(told) == {True}


@pytest.mark.parametrize("skip_query,parts", [(False, 3), (True, 2)])
def test_the_first_pass_alone_multiplies_no_queries(skip_query, parts, monkeypatch):
    model = golden_pipeline("class_parallel").transformer
    D, layers, outputs, linear = model.config.dim, model.config.head.num_layers, [], F.linear

    def watched(x, weight, *bias):
        outputs.append(len(weight))
        return linear(x, weight, *bias)

    monkeypatch.setattr(F, "linear", watched)
    step = FusedStep(model, 2, EngineOptions(skip_query=skip_query))
    for group, expected in ((range(1), parts * D), (range(1, 5), 3 * D)):
        outputs.clear()
        with torch.inference_mode():
            step.head(torch.randn(2, D), torch.zeros(2, 5, dtype=torch.int64), group)
        projections = [size for size in outputs if size in (2 * D, 3 * D)]
        assert projections == [expected] * layers


def test_sigmoid_gelu_and_no_biases():
    from test_loop import tiny

    from hqtvae_fast.config import BlocksConfig

    blocks = BlocksConfig(num_layers=2, num_heads=2, attention_bias=False, mlp_bias=False, gelu="sigmoid")
    model = tiny(codebook_sizes=(16, 16), body=blocks, head=blocks, iet_layers=1, position="2d")
    assert same(draw(model, "fused", k=3), draw(model, "reference", k=3))


def test_the_engine_is_chosen_by_name():
    model = golden_pipeline("class_parallel").transformer
    assert isinstance(make_step(model, 1), ReferenceStep)  # on a CPU
    with pytest.raises(ValueError, match="engine: expected one of fused, reference; got 'quick'"):
        make_step(model, 1, "quick")


# ------------------------------------------------------------------------------------------------------------- launches


def test_kernels_of_a_step_are_within_their_budget():
    """Preset S: at most 8 kernels a block and pass, 7 of skinny products, and 190 in all; the modules take more."""
    config = preset("S").transformer
    assert launches_a_block(config, "fused", batch=64) == {"body": 8, "head": 16}  # the head runs twice
    assert launches_a_block(config, "fused", batch=1) == {"body": 7, "head": 14}
    many, one, plain = (
        sum(count_launches(config, engine, batch=batch).values())
        for engine, batch in (("fused", 64), ("fused", 1), ("reference", 64))
    )
    assert many <= 190
    assert one == many - 20
    assert plain >= many + 50


def test_the_count_sees_one_more_kernel(monkeypatch):
    from hqtvae_fast.engine import fused_step

    config = preset("S").transformer
    config = dataclasses.replace(config, dim=192, side=2, codebook_sizes=(64, 64))
    before = count_launches(config, "fused", batch=64)
    gelu = fused_step.bias_gelu
    monkeypatch.setattr(fused_step, "bias_gelu", lambda x, bias, form: gelu(x, bias, form) * 1.0)
    after = count_launches(config, "fused", batch=64)
    assert sum(after.values()) == sum(before.values()) + config.body.num_layers + 2 * config.head.num_layers
    assert before["bias_gelu"] == config.body.num_layers + 2 * config.head.num_layers


@pytest.mark.parametrize(
    "name",
    ["S-text", "S-3level", pytest.param("M", marks=pytest.mark.slow), pytest.param("FFHQ", marks=pytest.mark.slow)],
)
def test_every_preset_stays_at_eight_kernels_a_block(name):
    config = preset(name).transformer
    assert launches_a_block(config, "fused", batch=64) == {"body": 8, "head": 8 * len(config.groups)}
