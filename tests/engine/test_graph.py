"""Replays: one set of static buffers, many requests; and the captures that are kept."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from conftest import engine, golden_pipeline, golden_values

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine import Executor, SamplingParams, decode_codes, draw_codes
from hqtvae_fast.engine.coding import DecodeReplay
from hqtvae_fast.engine.graph import CaptureError, DrawReplay, GraphCache
from hqtvae_fast.hardware import fp32_products
from hqtvae_fast.seeds import image_seeds

CPU = torch.device("cpu")
CASES = ("class_parallel", "class_parallel_iet1", "class_sequential", "class_bidirectional", "class_level3")


def params(levels: int, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None):
    return SamplingParams((temperature,) * levels, (top_k,) * levels, (top_p,) * levels)


def flag(device: torch.device = CPU) -> torch.Tensor:
    return torch.zeros((), dtype=torch.bool, device=device)


def same(left, right) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("engine", ["reference", pytest.param("fused", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_a_replay_draws_what_the_loop_draws(case, engine):
    """Requests that differ in everything that has no shape, one after the other."""
    model = golden_pipeline(case).transformer
    levels, replay = model.config.num_levels, DrawReplay(model, 3, engine=engine)
    requests = [
        ([4, 4, 4], 0, params(levels)),
        ([1, 2, 3], 5, params(levels, 0.7, 20)),
        ([9, 0, 9], 6, params(levels, 1.2, None, 0.8)),
        ([4, 4, 4], 0, params(levels)),
    ]
    for labels, seed, sampling in requests:
        condition, seeds = torch.tensor(labels), image_seeds(seed, 3)
        assert same(replay(condition, seeds, sampling), draw_codes(model, condition, seeds, sampling, engine=engine))


def test_codes_of_a_replay_are_the_callers_own():
    model = golden_pipeline("class_parallel").transformer
    replay = DrawReplay(model, 2)
    first = replay(torch.tensor([1, 2]), image_seeds(0, 2), params(2))
    kept = [level.clone() for level in first]
    replay(torch.tensor([3, 4]), image_seeds(1, 2), params(2))
    assert same(first, kept)


def test_given_top_codes_are_a_capture_of_their_own():
    model = golden_pipeline("class_parallel").transformer
    replay = DrawReplay(model, 2, given=True)
    label = torch.tensor([1, 2])
    for seed in (0, 1):
        top = torch.randint(64, (2, 4, 4), generator=torch.Generator().manual_seed(seed))
        drawn = replay(label, image_seeds(seed, 2), params(2), top)
        assert same(drawn, draw_codes(model, label, image_seeds(seed, 2), params(2), given_top_codes=top))
    with pytest.raises(ValueError, match="this capture is for 2 seeds, top codes given; got 2, top codes drawn"):
        replay(label, image_seeds(0, 2), params(2))


def test_a_text_prefix_is_read_anew():
    model = golden_pipeline("text_parallel").transformer
    replay = DrawReplay(model, 2)
    tokens = golden_values("text_parallel")["text"][:2].long()
    for condition in (tokens, tokens.flip(0)):
        drawn = replay(condition, image_seeds(3, 2), params(2))
        assert same(drawn, draw_codes(model, condition, image_seeds(3, 2), params(2)))


def test_other_shapes_are_refused():
    replay = DrawReplay(golden_pipeline("class_parallel").transformer, 2)
    with pytest.raises(ValueError, match="this capture is for 2 seeds, top codes drawn; got 3"):
        replay(torch.tensor([1, 2, 3]), image_seeds(0, 3), params(2))
    with pytest.raises(ValueError, match=r"condition: expected \[2\]; got \[1\]"):
        replay(torch.tensor([1]), image_seeds(0, 2), params(2))
    with pytest.raises(ValueError, match="top_k: expected an integer"):
        replay(torch.tensor([1, 2]), image_seeds(0, 2), params(2, top_k=999))


def test_decoding_is_replayed_too():
    vae = golden_pipeline("class_parallel").vae
    replay = DecodeReplay(vae, 3)
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        codes = [torch.randint(64, (3, side, side), generator=generator) for side in vae.config.level_sides]
        assert torch.equal(replay(codes), decode_codes(vae, codes, chunk=replay.chunk))


def random_codes(vae, count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(64, (count, side, side), generator=generator) for side in vae.config.level_sides]


def without(codes, level):
    return [None if index == level else part for index, part in enumerate(codes)]


def test_a_replay_decodes_fewer_images_than_it_holds():
    """After more of others; and codes of a narrower integer, as files may have them."""
    vae = golden_pipeline("class_parallel").vae
    replay = DecodeReplay(vae, 3, as_bytes=True)
    replay(random_codes(vae, 3))
    codes = random_codes(vae, 2, seed=1)
    decoded = replay([level.to(torch.int32) for level in codes])
    assert torch.equal(decoded, decode_codes(vae, codes, as_bytes=True))
    kept = decoded.clone()
    replay(random_codes(vae, 3, seed=2))
    assert torch.equal(decoded, kept)  # the caller's own


def test_other_codes_than_a_replay_is_for_are_refused():
    vae = golden_pipeline("class_parallel").vae
    replay = DecodeReplay(vae, 2)
    for codes in (random_codes(vae, 3), random_codes(vae, 0), without(random_codes(vae, 2), 1)):
        with pytest.raises(
            ValueError, match=r"this capture is for codes \[\[2, 4, 4\], \[2, 8, 8\]\], or fewer images; got"
        ):
            replay(codes)


@pytest.mark.parametrize("missing", [None, 0, 1])
@pytest.mark.parametrize("output_type", ["pil", "pt"])
def test_a_pipelines_decode_is_replayed(output_type, missing):
    """Five images in batches of two, the last one alone, whichever level is left out."""
    plain = golden_pipeline("class_parallel")
    replayed = HQTVAEPipeline(plain._checkpoint, device="cpu", dtype="fp32", plan=engine("captured"))
    codes = without(random_codes(plain.vae, 5), missing)
    left, right = plain.decode(codes, output_type), replayed.decode(codes, output_type, batch_size=2)
    if output_type == "pt":
        assert torch.equal(left, right)
    else:
        assert [a.tobytes() for a in left] == [b.tobytes() for b in right]
    kind, here = "bytes" if output_type == "pil" else "numbers", [level for level in (0, 1) if level != missing]
    kept = [report.key for report in replayed._executor.graphs.report()]
    assert kept == [("decode", size, f"levels {here}", kind, f"plan {replayed.plan.id}") for size in (2, 1)]
    assert plain._executor.graphs is None


def without_captures(kind: str, monkeypatch) -> tuple[HQTVAEPipeline, HQTVAEPipeline]:
    """A plain pipeline, and one that is to capture what cannot be."""

    def fail(self, *_, **__):
        raise CaptureError("cannot be captured in a CUDA graph: aten::nonzero")

    monkeypatch.setattr(f"hqtvae_fast.engine.executor.{kind}.__init__", fail)
    plain = golden_pipeline("class_parallel")
    return plain, HQTVAEPipeline(plain._checkpoint, device="cpu", dtype="fp32", plan=engine("captured"))


def test_a_decode_that_cannot_be_captured_runs_as_it_is_and_says_so(monkeypatch):
    plain, pipe = without_captures("DecodeReplay", monkeypatch)
    codes = random_codes(plain.vae, 3)
    with pytest.warns(UserWarning, match="aten::nonzero: running step by step from now on"):
        decoded = pipe.decode(codes, "pt")
    assert torch.equal(decoded, plain.decode(codes, "pt"))


@pytest.mark.parametrize("case", [*CASES, "uncond_reduce", "global_top"])
def test_a_pipeline_with_replays_draws_the_same(case, monkeypatch):
    plain = golden_pipeline(case)
    replayed = HQTVAEPipeline(plain._checkpoint, device="cpu", dtype="fp32", plan=engine("captured"))
    conditioned = plain.transformer.config.condition == "class"
    request = {"class_labels": [3, 5, 7] if conditioned else None, "num_images": 1 if conditioned else 3, "seed": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a prior alone draws coarse pictures
        drawn = [pipe(**request, output_type="pt", progress=False) for pipe in (plain, replayed)]
    assert same(drawn[0].codes, drawn[1].codes)
    torch.testing.assert_close(drawn[0].images, drawn[1].images, rtol=0, atol=1e-5)
    kept = [report.key for report in replayed._executor.graphs.report()]
    assert (
        "draw",
        0,
        4,
        "all codes",
        "any draw",
        f"plan {replayed.plan.id}",
    ) in kept  # three images in the bucket of four
    assert len(kept) == 2


def test_what_cannot_be_captured_runs_step_by_step_and_says_so(monkeypatch):
    plain, pipe = without_captures("DrawReplay", monkeypatch)
    with pytest.warns(UserWarning, match="aten::nonzero: running step by step from now on"):
        drawn = pipe(1, output_type="codes", progress=False)
    assert same(drawn.codes, plain(1, output_type="codes", progress=False).codes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        pipe(1, output_type="codes", progress=False)


# ------------------------------------------------------------------------------------------------------------ the cache


class Held:
    def __init__(self, size: int) -> None:
        self.bytes = size


def test_captures_are_kept_up_to_a_cap():
    cache, made = GraphCache(CPU, limit=100), []

    def get(name: str, size: int = 40):
        def make():
            made.append(name)
            return Held(size)

        return cache.get(name, make)

    first = get("a")
    get("b")
    assert get("a") is first
    get("c")  # 120 bytes: "b" was used longest ago
    assert [report.key for report in cache.report()] == ["a", "c"]
    assert cache.bytes == 80
    get("b")
    assert made == ["a", "b", "c", "b"]
    get("large", 500)
    assert [report.key for report in cache.report()] == ["large"]
    assert str(cache.report()[0]) == "large: 0 MiB, used 1 times"
    cache.clear()
    assert cache.report() == []


def test_captures_are_given_up_before_a_new_one_is_refused():
    """One lacks memory while others are kept; when it is the only one, that is told."""
    cache, tried = GraphCache(CPU, limit=None), []

    def make():
        tried.append([report.key for report in cache.report()])
        if tried[-1] or len(tried) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Held(80)

    cache.get("a", lambda: Held(40))
    assert cache.get("b", make).bytes == 80
    assert tried == [["a"], []]
    assert [report.key for report in cache.report()] == ["b"]
    with pytest.raises(torch.OutOfMemoryError):
        cache.get("c", make)
    assert cache.report() == []


def test_moving_a_pipeline_gives_up_its_captures():
    pipe = HQTVAEPipeline(
        golden_pipeline("class_parallel")._checkpoint, device="cpu", dtype="fp32", plan=engine("captured")
    )
    pipe(1, output_type="codes", progress=False)
    assert pipe._executor.graphs.report()
    pipe.to(dtype="fp32")
    assert pipe._executor.graphs.report() == []


def test_moving_a_pipeline_waits_for_what_still_runs(monkeypatch):
    """With a device that is only said to be a GPU."""
    pipe, waited = HQTVAEPipeline(golden_pipeline("class_parallel")._checkpoint, device="cpu", dtype="fp32"), []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    pipe.to("cpu")
    assert waited == []
    pipe.device = torch.device("cuda", 1)
    pipe.to("cpu")
    assert waited == [torch.device("cuda", 1)]


# ---------------------------------------------------------------------------------------------------------- on a GPU


def on_gpu(case: str) -> HQTVAEPipeline:
    """With weights of its own: the other tests' stay on the CPU."""
    checkpoint = copy.deepcopy(golden_pipeline(case)._checkpoint)
    return HQTVAEPipeline(checkpoint, device="cuda", dtype="fp32", plan=engine("captured"))


@pytest.fixture
def gpu_pipeline() -> HQTVAEPipeline:
    return on_gpu("class_parallel")


@pytest.mark.gpu
def test_a_graph_equals_the_eager_loop_bit_for_bit(gpu_pipeline):
    model, device = gpu_pipeline.transformer, gpu_pipeline.device
    replay = DrawReplay(model, 8)
    for seed, sampling in ((0, params(2)), (1, params(2, 0.8, 20)), (2, params(2, 1.1, None, 0.9))):
        labels, seeds = torch.arange(8, device=device), image_seeds(seed, 8).to(device)
        drawn = replay(labels, seeds, sampling)
        assert same(drawn, draw_codes(model, labels, seeds, sampling))


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["class_parallel", "class_level3", "stage1_avgpool", "stage1_conv2"])
def test_a_captured_decode_equals_the_eager_one_bit_for_bit(case):
    pipe = on_gpu(case)
    levels = pipe.config.vae.num_levels
    for seed, missing, kind in (
        (0, None, "pt"),
        (1, None, "pt"),
        (2, 0, "pt"),
        (3, levels - 1, "pil"),
        (4, None, "pil"),
    ):
        codes = without(random_codes(pipe.vae, 4, seed), missing)
        on_device = [None if level is None else level.to(pipe.device) for level in codes]
        with fp32_products(pipe.device, tf32=False):
            eager = decode_codes(pipe.vae, on_device, chunk=4, as_bytes=kind == "pil").cpu()
        decoded = pipe.decode(codes, kind, batch_size=4)
        if kind == "pil":
            decoded = torch.stack([torch.from_numpy(np.array(picture)) for picture in decoded])
        assert torch.equal(decoded, eager)
    assert {report.key[0] for report in pipe._executor.graphs.report()} == {"decode"}


@pytest.mark.gpu
def test_two_models_alternate(gpu_pipeline):
    other = on_gpu("class_sequential")
    first = [pipe([1, 2], output_type="codes", progress=False).codes for pipe in (gpu_pipeline, other)]
    for _ in range(3):
        again = [pipe([1, 2], output_type="codes", progress=False).codes for pipe in (gpu_pipeline, other)]
        assert all(same(a, b) for a, b in zip(first, again, strict=True))


def read_in_turn(pipe: HQTVAEPipeline) -> tuple[list, list]:
    """Codes of two streams of one pipeline: each read alone, then both, picture by picture."""
    requests = [
        {"class_labels": [1, 2, 3, 4, 5, 6], "seed": 3, "top_k": 20},
        {"class_labels": [9, 8, 7, 6, 5, 4], "seed": 4, "temperature": 0.7},
    ]
    streams = [lambda own=own: pipe.stream(**own, batch_size=2, output_type="pt") for own in requests]
    alone = [list(stream()) for stream in streams]
    pairs = list(zip(*(stream() for stream in streams), strict=True))
    return alone, [[pair[index] for pair in pairs] for index in range(len(streams))]


def same_pictures(left: list, right: list) -> bool:
    return all(same(a.codes, b.codes) and torch.equal(a.image, b.image) for a, b in zip(left, right, strict=True))


@pytest.mark.gpu
def test_two_streams_on_a_gpu_give_what_each_gives_alone(gpu_pipeline):
    """They replay the same captures, one's while the other's still runs."""
    alone, both = read_in_turn(gpu_pipeline)
    assert all(map(same_pictures, alone, both))


@pytest.mark.gpu
def test_a_thousand_replays_hold_no_more_memory(gpu_pipeline):
    device = gpu_pipeline.device
    replay, labels = DrawReplay(gpu_pipeline.transformer, 2), torch.tensor([1, 2], device=device)
    seeds = image_seeds(0, 2).to(device)
    replay(labels, seeds, params(2))
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for _ in range(1000):
        replay(labels, seeds, params(2))
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == before


@pytest.mark.gpu
def test_nothing_waits_inside(gpu_pipeline):
    """Torch's own check raises at each call that would hold up the host."""
    device = gpu_pipeline.device
    runner = DrawReplay(gpu_pipeline.transformer, 2)
    with torch.inference_mode():
        runner.drawing.run()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            runner.drawing.run()
            runner.replay(runner._work)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert runner.bytes > 0
    assert device.type == "cuda"


@pytest.mark.gpu
def test_an_executor_on_a_gpu_captures_by_default(gpu_pipeline):
    assert Executor(gpu_pipeline._models(), gpu_pipeline.vae, gpu_pipeline.device).graphs is not None
