"""The decoding benchmark: the plain decoder is the model, and a wrong entrant is not timed."""

from __future__ import annotations

import pytest
import torch
import typer
from conftest import CASES, golden_pipeline, golden_values
from torch import nn
from typer.testing import CliRunner

from benchmarks.entrants.plain_decoder import PlainDecoder
from benchmarks.measuring.schema import read
from benchmarks.suites import decode, generate
from benchmarks.suites.decode_layers import decode_layers
from hqtvae_fast.model.autoencoder import AttnBlock, NormSwish, Upsample
from hqtvae_fast.model.cost import decode_flops

TOLERANCE = 1e-4


@pytest.mark.parametrize("name", CASES)
def test_the_plain_decoder_is_the_released_one(name):
    vae, golden = golden_pipeline(name).vae, golden_values(name)
    names = ["codes_top", "codes_bottom"] if "codes_top" in golden else ["codes_0", "codes_1", "codes_2"]
    picture = PlainDecoder(vae)([golden[level] for level in names])
    torch.testing.assert_close(picture, golden["recon"], rtol=0, atol=TOLERANCE)


def run(*arguments):
    app = typer.Typer()
    app.command()(generate.generate)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_run_reports_every_entrant(tmp_path):
    file = tmp_path / "decode.json"
    result = run("--decode-only", "--preset", "tiny", "--batch", 3, "--repeats", 2, "--dtype", "fp32", "--json", file)
    assert result.exit_code == 0, result.output
    assert "Decoding 3 images, tiny" in result.output
    assert "of the GEMM" in result.output
    assert "group norm and SiLU, 32x32x32" in result.output
    results = read(file)
    ours, one, whole = results.rows
    assert [row.entrant for row in (ours, one, whole)] == [
        *("hqtvae_fast", "plain torch, one image at a time", "plain torch, the batch at once"),
    ]
    assert [row.ours for row in (ours, one, whole)] == [True, False, False]
    assert all(len(row.runs) == 2 and min(row.runs) > 0 and row.work["images"] == 3 for row in (ours, one, whole))
    assert ours.work["flops"] < one.work["flops"] == whole.work["flops"]
    assert ours.name == "tiny, batch 3: decode"
    assert results.details["gemm_flops"] > 0
    assert results.details["layers"]


@pytest.mark.slow
def test_everything_that_a_gpu_is_measured_with_decodes_the_same():
    """On a CPU: a capture is a call there, and torch's compiler gives the graph that it has read back as it is."""
    vae, device = decode._open_vae("tiny", None), torch.device("cpu")
    entrants = decode.make_entrants(vae, device, torch.float32, 2, everything=True, compile_backend="eager")
    assert [entrant.name for entrant in entrants] == [
        *("hqtvae_fast", "hqtvae_fast, captured", "plain torch", "plain torch, channels-last"),
        *("torch.compile, channels-last", "plain torch, one image at a time", "plain torch, the batch at once"),
    ]
    codes = decode._random_codes(vae.config, 2, device)
    decode.check_alike(entrants, codes)
    images = [entrant.run(codes) for entrant in entrants]
    assert all(image.shape == (2, 3, 32, 32) and image.dtype is torch.float32 for image in images)
    for image in images[:-1]:
        torch.testing.assert_close(image, images[-1], rtol=0, atol=TOLERANCE)


def test_plain_decoders_keep_to_torchs_convolutions(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a plain decoder asked for our kernel")

    monkeypatch.setattr("hqtvae_fast.model.convolution.winograd_conv", fail)
    vae = golden_pipeline("class_parallel").vae
    codes = [torch.zeros(1, side, side, dtype=torch.int64) for side in vae.config.level_sides]
    images = [PlainDecoder(vae, channels_last=channels_last)(codes) for channels_last in (False, True)]
    torch.testing.assert_close(*images, rtol=0, atol=TOLERANCE)


# ----------------------------------------------------------------------------------------------------- layer by layer


def test_layers_are_all_of_the_decoder(monkeypatch):
    vae = golden_pipeline("class_parallel").vae
    codes = [torch.zeros(2, side, side, dtype=torch.int64) for side in vae.config.level_sides]
    monkeypatch.setattr("benchmarks.suites.decode_layers.chunk_size", lambda vae, device: 2)
    *layers, rest = decode_layers(vae, codes, torch.device("cpu"))
    kinds = (nn.Conv2d, Upsample, NormSwish, AttnBlock)
    inner = sum(isinstance(layer, Upsample) for layer in vae.decoder.modules())  # each has a convolution of its own
    assert sum(layer.count for layer in layers) == sum(isinstance(m, kinds) for m in vae.decoder.modules()) - inner
    assert [layer.seconds for layer in layers] == sorted((layer.seconds for layer in layers), reverse=True)
    assert rest.name == "everything else (2 images in all)"
    counted = sum(layer.flops for layer in layers)
    assert counted == pytest.approx(2 * decode_flops(vae.config, fold_upsampling=True), rel=0.02)
    assert not any(module._forward_hooks for module in vae.decoder.modules())


def test_an_entrant_that_decodes_something_else_is_refused():
    vae = decode._open_vae("tiny", None)
    entrants = decode.make_entrants(vae, torch.device("cpu"), torch.float32, 2, everything=False)
    codes = decode._random_codes(vae.config, 2, torch.device("cpu"))
    decode.check_alike(entrants, codes)
    right = entrants[0].run
    entrants[0].run = lambda codes: right(codes) + 0.01
    with pytest.raises(RuntimeError, match=r"hqtvae_fast: expected pixels within 0.0001 of plain fp32; off by 0.01"):
        decode.check_alike(entrants, codes)
