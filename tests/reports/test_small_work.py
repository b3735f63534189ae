"""Small models on a CPU: how many threads they take, and what stands between their operations."""

from __future__ import annotations

import threading

import pytest
import torch

from hqtvae_fast import HQTVAEPipeline, threads
from hqtvae_fast.config import PRESETS
from hqtvae_fast.engine.coding import chunk_size, decode_codes
from hqtvae_fast.model.cost import decode_flops, draw_steps, encode_flops
from hqtvae_fast.ops.kernels.decode_attention import decode_attention, reference
from hqtvae_fast.ops.kernels.group_norm_silu.native import runs_of
from hqtvae_fast.ops.kernels.sample_logits import sample_logits
from hqtvae_fast.threads import SMALL, decoding_flops, drawing_flops, picture_flops, threads_for


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def busy(monkeypatch):
    monkeypatch.setattr(threads, "_free", lambda count: False)


def test_T6_small_work_takes_one_thread_of_a_busy_machine(busy):
    with threads_for(SMALL / 2):
        assert torch.get_num_threads() == 1
        with threads_for(SMALL * 2):
            assert torch.get_num_threads() == 1  # never more than around it
        elsewhere = []
        other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert elsewhere == [2]  # a thread that first uses torch meanwhile
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), threads_for(0):
        raise KeyError
    assert torch.get_num_threads() == 2


def test_T6_other_work_keeps_its_threads(busy, monkeypatch):
    with threads_for(SMALL * 2):
        assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "_free", lambda count: True)
    with threads_for(0):
        assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "_free", lambda count: False)
    monkeypatch.setattr(threads, "_runtime", lambda: None)  # a torch without OpenMP
    with threads_for(0):
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "line, wanted",
    [("1.0 1.0 1.0 5/400 77", True), ("1.0 1.0 1.0 6/400 77", False), ("", True), ("0 0 0 x 1", True)],
)
def test_T6_a_core_is_free_where_nobody_else_would_run(tmp_path, monkeypatch, line, wanted):
    """Of four cores, two for us, who run already: two others leave them, three do not."""
    monkeypatch.setattr(threads, "LOAD", tmp_path / "loadavg")
    (tmp_path / "loadavg").write_text(line)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "_own_running", lambda: 3)
    assert threads._free(2) is wanted
    (tmp_path / "loadavg").unlink()
    assert threads._free(2)


def test_T6_opening_drawing_decoding_and_encoding_are_small_work_of_a_small_model(busy, monkeypatch):
    counts = {}

    def watch(name, function):
        def watched(*inputs, **options):
            counts.setdefault(name, set()).add(torch.get_num_threads())
            return function(*inputs, **options)

        return watched

    monkeypatch.setattr(torch, "aminmax", watch("opening", torch.aminmax))
    pipe = HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype="fp32")
    for name, module in (("draw", pipe.transformer.norm), ("decode", pipe.vae.decoder), ("encode", pipe.vae.encoder)):
        monkeypatch.setattr(module, "forward", watch(name, module.forward))
    monkeypatch.setattr(pipe.vae.decoder, "to_bytes", watch("decode", pipe.vae.decoder.to_bytes))
    pipe.encode(pipe(prompt="a red circle", progress=False).images)
    assert counts == {what: {1} for what in ("opening", "draw", "decode", "encode")}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["demo", "S", "S-3level"])
def test_T6_how_much_work_is_known_to_a_third(name):
    """Against the exact count."""
    config = HQTVAEPipeline.from_pretrained("demo", device="cpu").config if name == "demo" else PRESETS[name]
    assert decoding_flops(config.vae) == pytest.approx(decode_flops(config.vae), rel=0.35)
    assert decoding_flops(config.vae) > encode_flops(config.vae)
    exact = sum(step.products + step.attention for step in draw_steps(config.transformer))
    assert drawing_flops(config.transformer) == pytest.approx(exact, rel=0.35)
    assert (picture_flops(config) < SMALL / 4) == (name == "demo")
    assert (picture_flops(config) > SMALL * 20) == (name != "demo")


@pytest.mark.parametrize("kept", [1, 2, 7])
def test_T6_small_attention_is_the_large_ones(monkeypatch, kept):
    """Torch's own attention over few keys, and the two products: the same to rounding, an image alone to the bit."""
    torch.manual_seed(0)
    qkv, cache = torch.randn(3, 1, 3, 2, 16), torch.randn(2, 3, 2, 9, 16)
    small = decode_attention(qkv, *cache.clone(), kept - 1, backend="reference")
    alone = decode_attention(qkv[1:2], *cache.clone()[:, 1:2], kept - 1, backend="reference")
    assert torch.equal(alone[0], small[1])
    monkeypatch.setattr(reference, "SMALL", 0)
    torch.testing.assert_close(small, decode_attention(qkv, *cache.clone(), kept - 1, backend="reference"))


def test_T6_small_pictures_are_decoded_many_at_a_time_and_alike():
    pipe = HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype="fp32")
    assert chunk_size(pipe.vae, torch.device("cpu")) >= 8
    codes = [torch.arange(5 * side**2).view(5, side, side) for side in pipe.config.vae.level_sides]
    assert torch.equal(decode_codes(pipe.vae, codes), decode_codes(pipe.vae, codes, chunk=1))


def test_T6_a_draw_on_a_cpu_runs_without_an_operator_around_it(monkeypatch):
    def refuse(*inputs):
        raise AssertionError

    monkeypatch.setattr(torch.ops.hqtvae_fast, "sample_logits", refuse)
    logits, seeds = torch.randn(3, 4, 50), torch.arange(3)
    many = sample_logits(logits, seeds=seeds, step=2, position=1, top_k=20)
    for position in range(4):
        one = sample_logits(
            logits[:, position], seeds=seeds, step=2, position=1 + position, top_k=20, backend="reference"
        )
        assert torch.equal(one, many[:, position])


@pytest.mark.parametrize("C, side, runs", [(64, 8, 1), (64, 16, 2), (512, 16, 16), (128, 256, 64)])
def test_T6_a_small_map_is_normalised_in_few_runs(C, side, runs):
    """Joining many short runs took six times what torch's whole normalisation takes."""
    assert runs_of(torch.empty(2, C, side, side, dtype=torch.bfloat16, device="meta")) == runs
