"""Keys and values of the body in 8 bits: the same codes however a batch is run, near those without, in fewer bytes."""

from __future__ import annotations

import pytest
import torch
from conftest import GOLDEN, engine, golden_pipeline
from test_fused_step import SOME, condition_of, draw, same

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.config import preset
from hqtvae_fast.engine import EngineOptions, Executor, SamplingParams, draw_codes
from hqtvae_fast.engine.cache import KVCache, table_bytes
from hqtvae_fast.engine.fused_step import FusedStep, make_step, make_tables
from hqtvae_fast.engine.graph import DrawReplay
from hqtvae_fast.engine.step import ReferenceStep
from hqtvae_fast.plan import Plan
from hqtvae_fast.seeds import image_seeds
from hqtvae_fast.tune import quality
from hqtvae_fast.tune.launches import calls_of_step

CPU = torch.device("cpu")
EIGHT = EngineOptions.read("kv=int8")


def params_of(model):
    levels = model.config.num_levels
    return SamplingParams((0.9,) * levels, (40,) * levels, (0.95,) * levels)


def test_words():
    assert EngineOptions(kv="int8") == EIGHT
    assert str(EngineOptions.read("kv=int8, overlap=off, tables")) == "tables, kv=int8, overlap=off"
    with pytest.raises(ValueError, match=r"expected some of .*kv=int8, overlap=.*; got 'kv=fp8'"):
        EngineOptions.read("kv=fp8")
    with pytest.raises(ValueError, match="expected 'modules' without what the fused step alone has"):
        EngineOptions.read("modules, kv=int8")


def test_the_fused_step_alone_has_it():
    model = golden_pipeline("class_parallel").transformer
    step = make_step(model, 2, options=EIGHT)
    assert isinstance(step, FusedStep)
    body, head = step.caches
    assert body.keys.dtype is body.values.dtype is torch.int8
    assert body.scales.shape == (len(model.body.layers), 2, 2, model.config.body.num_heads, body.keys.shape[3])
    assert (head.keys.dtype, head.scales) == (torch.float32, None)
    with pytest.raises(ValueError, match="expected engine 'fused', which alone has any"):
        make_step(model, 2, "reference", EIGHT)
    assert isinstance(make_step(model, 2), ReferenceStep)


# ---------------------------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize("case", SOME)
def test_one_batch_several_and_a_replay_draw_the_same_codes(case):
    model, params = golden_pipeline(case).transformer, params_of(golden_pipeline(case).transformer)
    condition, seeds = condition_of(model.config, 3), image_seeds(7, 3)
    whole = draw(model, None, options=EIGHT)
    parts = [
        draw_codes(model, None if condition is None else condition[own], seeds[own], params, options=EIGHT)
        for own in (slice(0, 1), slice(1, 3))
    ]
    assert same(whole, [torch.cat(level) for level in zip(*parts, strict=True)])
    replay = DrawReplay(model, 3, options=EIGHT)
    for _ in range(2):  # the second one over what the first has left
        assert same(replay(condition, seeds, params), whole)
    assert not same(whole, draw(model, None, seed=8, options=EIGHT))


@pytest.mark.parametrize("words", ["tables", "skip_query", "tables, skip_query"])
def test_it_goes_with_other_options(words):
    for case in ("class_parallel", "class_parallel_iet1", "uncond_reduce", "text_parallel"):
        model = golden_pipeline(case).transformer
        both = EngineOptions.read(f"{words}, kv=int8")
        assert same(draw(model, None, options=both), draw(model, None, options=EIGHT)), case


def test_given_top_codes():
    model = golden_pipeline("class_parallel").transformer
    top = draw(model, "reference")[0]
    codes = draw(model, None, options=EIGHT, given_top_codes=top)
    assert torch.equal(codes[0], top)
    assert same(codes, DrawReplay(model, 3, given=True, options=EIGHT)(
        condition_of(model.config, 3), image_seeds(7, 3), params_of(model), top
    ))  # fmt: skip


def test_pipelines_draw_the_same_captured_overlapped_and_in_turn():
    found = [
        HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32", plan=engine(text))(
            class_labels=[1, 0, 2], seed=3, batch_size=2, output_type="codes", progress=False
        ).codes
        for text in ("kv=int8", "kv=int8, captured", "kv=int8, overlap=on", "kv=int8, captured, overlap=on, tables")
    ]
    assert all(same(found[0], other) for other in found[1:])


def test_a_model_in_bf16():
    model = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="bf16").transformer
    assert same(draw(model, None, options=EIGHT), draw(model, None, options=EngineOptions.read("kv=int8, tables")))


# --------------------------------------------------------------------------------------------------- what rounding does


@pytest.mark.parametrize("case", SOME)
def test_logits_move_and_only_a_little(case):
    pipe = golden_pipeline(case)
    if pipe.transformer.config.condition == "codes":
        pytest.skip("draws nothing by itself")
    drawn = quality.draw(pipe._checkpoint, CPU, 100)
    assert quality.engine_kl(pipe.transformer, drawn, "skip_query") < 1e-9
    assert 1e-12 < quality.engine_kl(pipe.transformer, drawn, "kv=int8") < 1e-4


def test_steps_of_the_engine_are_what_teacher_forcing_gives():
    """Logits that the gate compares, against the model's own over all positions at once."""
    pipe = golden_pipeline("class_parallel")
    drawn = quality.draw(pipe._checkpoint, CPU, 100)
    known, condition = quality._known(pipe.transformer.config, drawn)
    with torch.inference_mode():
        forced = pipe.transformer(known, condition).levels
        stepped = quality._step_logits(pipe.transformer, drawn, EngineOptions())
    for own, other in zip(stepped, forced, strict=True):
        assert own.shape == other.shape
        torch.testing.assert_close(own.sum(dim=1), other.sum(dim=1), rtol=1e-4, atol=1e-3)


def test_rounding_is_what_is_attended(monkeypatch):
    """Not the numbers as they were: coarser ones give other codes."""
    from hqtvae_fast.ops.kernels.decode_attention import int8

    model = golden_pipeline("class_parallel").transformer
    fine = draw(model, None, options=EIGHT)
    monkeypatch.setattr(int8, "LARGEST", 1.0)
    assert not same(draw(model, None, options=EIGHT), fine)


# ---------------------------------------------------------------------------------------------------- bytes and kernels


def test_bytes_of_a_cache():
    """Preset S at batch 512: 17 of 32 bytes, heads of 64 in bf16."""
    shape = {"layers": 12, "batch": 512, "heads": 24, "capacity": 64, "width": 64, "dtype": torch.bfloat16}
    with torch.device("meta"):
        caches = [KVCache(**shape, device=torch.device("meta"), kv=kv) for kv in (None, "int8")]
    assert [cache.bytes for cache in caches] == [2 * 12 * 512 * 24 * 64 * size for size in (128, 68)]


def test_a_capture_holds_as_much_less():
    model = golden_pipeline("class_parallel").transformer
    plain, eight = (DrawReplay(model, 3, options=options) for options in (None, EIGHT))
    body = [replay.drawing.step.caches[0].bytes for replay in (plain, eight)]
    assert plain.bytes - eight.bytes == body[0] - body[1] > 0


@pytest.mark.parametrize("case", SOME)
def test_bytes_of_tables(case):
    model = golden_pipeline(case).transformer
    assert make_tables(model, "int8").bytes == table_bytes(model.config, torch.float32, "int8")


@pytest.mark.parametrize("batch", [1, 512])
def test_a_step_launches_as_many_kernels(batch):
    config = preset("S").transformer
    plain, eight = (calls_of_step(config, "fused", batch=batch, options=options) for options in (None, EIGHT))
    assert [call.name for call in plain] == [call.name for call in eight]
    (cache,) = {(call.inputs[2].dtype, call.inputs[-1]) for call in eight if call.name == "decode_attention"}
    assert cache == (torch.int8, "triton/int8")


# -------------------------------------------------------------------------------------------------------- the executor


def test_tables_of_both_kinds_are_kept_apart():
    """A plan whose sizes keep keys and values otherwise: each batch reads tables of its own kind."""
    pipe = golden_pipeline("class_parallel")
    plan = Plan(engine={1: "tables", 4: "tables, kv=int8"})
    own = Executor(pipe._models(), pipe.vae, CPU, plan)
    plain, eight = own.tables(0), own.tables(0, "int8")
    assert plain.start.keys.dtype is torch.float32
    assert eight.start.keys.dtype is torch.int8
    assert own.tables(0) is plain
    mixed = HQTVAEPipeline(pipe._checkpoint, device="cpu", dtype="fp32", plan=plan)
    wanted = HQTVAEPipeline(pipe._checkpoint, device="cpu", dtype="fp32", plan=engine("kv=int8"))
    codes = [each([1, 0, 2], seed=3, output_type="codes", progress=False).codes for each in (mixed, wanted)]
    assert same(*codes)
    assert Executor(pipe._models(), pipe.vae, CPU, engine("kv=int8")).tables(0, "int8") is None


def test_tables_of_another_kind_are_refused():
    model = golden_pipeline("class_parallel").transformer
    with pytest.raises(ValueError, match=r"tables: expected keys and values in torch.int8; got torch.float32"):
        draw(model, None, options=EIGHT, tables=make_tables(model))


def test_captures_with_and_without_are_two():
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32")
    own = Executor(pipe._models(), pipe.vae, CPU, engine("captured"))
    other = engine("captured, kv=int8")
    assert engine("captured").id != other.id
    condition, seeds = torch.tensor([1, 2]), image_seeds(0, 2)
    keys = set()
    for plan in (engine("captured"), other):
        executor = Executor(pipe._models(), pipe.vae, CPU, plan)
        executor.graphs = own.graphs
        invalid = torch.zeros((), dtype=torch.bool)
        executor.draw(condition, seeds, [params_of(pipe.transformer)], None, None, None, invalid, lambda: None)
        keys |= {report.key for report in own.graphs.report()}
    assert len(keys) == 2
