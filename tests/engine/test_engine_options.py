"""The engine's variants in a plan's words: read, said, and done."""

from __future__ import annotations

import pytest
import torch
from conftest import GOLDEN, engine, golden_pipeline

from hqtvae_fast import HQTVAEPipeline, threads
from hqtvae_fast.engine import Executor, executor
from hqtvae_fast.engine.coding import DecodeReplay
from hqtvae_fast.engine.fused_step import FusedStep, make_step
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.engine.step import ReferenceStep
from hqtvae_fast.hardware import cudnn_benchmark
from hqtvae_fast.plan import Plan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TEXTS = {
    "": EngineOptions(),
    "captured": EngineOptions(captured=True),
    "uncaptured, modules": EngineOptions(captured=False, modules=True),
    "dependent_launch, skip_query, overlap=priority, chunk=128, ahead=3": EngineOptions(
        dependent_launch=True, skip_query=True, overlap="priority", chunk=128, ahead=3
    ),
    "tables, fused_draw, whole_head, cudnn_benchmark, overlap=off, threads=4": EngineOptions(
        tables=True, fused_draw=True, whole_head=True, cudnn_benchmark=True, overlap="off", threads=4
    ),
    "fused_norm, quantized_products=but_down, chunk=2": EngineOptions(
        fused_norm=True, quantized_products="but_down", chunk=2
    ),
}
HOW = {"class_labels": [1, 2, 3], "seed": 3, "progress": False, "output_type": "pt"}


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_options_are_the_same(text):
    assert EngineOptions.read(text) == TEXTS[text]
    assert str(TEXTS[text]) == text
    shuffled = " ,".join(reversed(text.split(",")))
    assert EngineOptions.read(shuffled) == TEXTS[text]
    assert EngineOptions.read(text, tf32=True).tf32


@pytest.mark.parametrize(
    "text, said",
    [
        (
            "faster",
            r"expected some of captured, uncaptured, modules, .*overlap=off\|on\|priority, chunk=N.*; got 'faster'",
        ),
        ("overlap", "got 'overlap'"),
        ("overlap=sometimes", "got 'overlap=sometimes'"),
        ("chunk=0", "got 'chunk=0'"),
        ("quantized_products", r"quantized_products=but_down\|all, kv=int8, overlap=.*; got 'quantized_products'"),
        ("threads=many", "got 'threads=many'"),
        ("tables=1", "got 'tables=1'"),
        ("tables, tables", "expected tables once"),
        ("captured, uncaptured", "expected captured once"),
        ("modules, tables", "expected 'modules' without what the fused step alone has"),
        ("modules, quantized_products=all", "expected 'modules' without what the fused step alone has"),
    ],
)
def test_other_words_are_refused(text, said):
    with pytest.raises(ValueError, match=f"engine: .*{said}" if "expected" not in said else f"engine: {said}"):
        EngineOptions.read(text)


def test_what_is_not_said_depends_on_the_device():
    options = EngineOptions()
    assert (options.captures(CPU), options.captures(CUDA)) == (False, True)
    assert (options.overlaps(CPU), options.overlaps(CUDA)) == (False, True)
    assert not EngineOptions.read("uncaptured").captures(CUDA)
    assert not EngineOptions.read("overlap=off").overlaps(CUDA)
    assert EngineOptions.read("captured, overlap=on").captures(CPU)


def test_a_batch_is_computed_as_its_bucket_says():
    pipe = golden_pipeline("class_parallel")
    plan = Plan(engine={2: "captured, chunk=1", 8: "modules"})
    own = Executor(pipe._models(), pipe.vae, CPU, plan)
    assert [own.options(batch) for batch in (1, 2)] == [EngineOptions(captured=True, chunk=1)] * 2
    assert own.options(3) == own.options(50) == EngineOptions(modules=True)
    codes = pipe([1, 2, 3], output_type="codes", progress=False).codes
    for count in (2, 3):
        own.decode([level[:count] for level in codes], count)
    assert [report.key[:2] for report in own.graphs.report()] == [("decode", 2)]


def test_what_a_gpu_cannot_do_is_refused_for_any_bucket():
    pipe = golden_pipeline("class_parallel")
    with pytest.raises(ValueError, match="dependent_launch: expected a GPU"):
        Executor(pipe._models(), pipe.vae, CPU, Plan(engine={1: "", 8: "dependent_launch"}))


@pytest.mark.parametrize(
    "text",
    ["uncaptured", "captured, chunk=1", "chunk=2", "threads=1", "overlap=priority", "modules", "cudnn_benchmark"],
)
def test_pictures_are_the_same_however_it_runs(text):
    plain = golden_pipeline("class_parallel")
    pipe = HQTVAEPipeline(plain._checkpoint, device="cpu", dtype="fp32", plan=engine(text))
    drawn, wanted = pipe(**HOW), plain(**HOW)
    assert all(torch.equal(a, b) for a, b in zip(drawn.codes, wanted.codes, strict=True))
    torch.testing.assert_close(drawn.images, wanted.images, rtol=0, atol=1e-5)


def test_a_chunk_is_what_is_decoded_at_once(monkeypatch):
    pipe = HQTVAEPipeline.from_pretrained(
        GOLDEN / "class_parallel", device="cpu", dtype="fp32", plan=engine("captured, chunk=3")
    )
    asked, original = [], DecodeReplay.__init__

    def watched(self, *given, **how):
        original(self, *given, **how)
        asked.append(self.chunk)

    monkeypatch.setattr(executor.DecodeReplay, "__init__", watched)
    codes = golden_pipeline("class_parallel")([1] * 4, output_type="codes", progress=False).codes
    pipe.decode(codes, batch_size=4)
    pipe.decode([level[:2] for level in codes], batch_size=4)
    assert asked == [3, 2]


def test_the_modules_draw_where_that_is_asked_for():
    model = golden_pipeline("class_parallel").transformer
    assert isinstance(make_step(model, 1, options=EngineOptions(modules=True)), ReferenceStep)
    assert isinstance(make_step(model, 1, "fused", EngineOptions(modules=True)), FusedStep)


def test_threads_are_at_most_so_many(monkeypatch):
    counts = []
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(threads, "_runtime", lambda: (counts.append, lambda count: 7))
    with threads.at_most(2):
        assert counts == [2]
    assert counts == [2, 4]
    with threads.at_most(4), threads.at_most(8):
        assert counts == [2, 4]  # never more


def test_cudnn_is_as_before_afterwards():
    assert not torch.backends.cudnn.benchmark
    with cudnn_benchmark(CUDA, True):
        assert torch.backends.cudnn.benchmark
    with cudnn_benchmark(CUDA, False), cudnn_benchmark(CPU, True):
        assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def test_a_whole_head_that_does_not_fit_is_told_of_and_drawn_without():
    pipe = golden_pipeline("class_sequential")
    plan = engine("whole_head")
    other = HQTVAEPipeline(pipe._checkpoint, device="cpu", dtype="fp32", plan=plan)
    with pytest.warns(UserWarning, match=r"engine: whole_head cannot run: expected hierarchical decoding .*without it"):
        drawn = other([1, 2], output_type="codes", progress=False).codes
    wanted = pipe([1, 2], output_type="codes", progress=False).codes
    assert all(torch.equal(a, b) for a, b in zip(drawn, wanted, strict=True))
