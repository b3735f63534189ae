"""Spans of the decoder's convolutions: what they are set from, that files keep them, and what is refused in a file."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import GOLDEN, golden_pipeline
from safetensors.torch import load_file, save_file

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.checkpoint import CheckpointError
from hqtvae_fast.engine import decode_codes
from hqtvae_fast.model.autoencoder import Conv3x3, Upsample
from hqtvae_fast.model.calibration import roundable
from hqtvae_fast.ops.kernels.conv3x3 import onednn
from hqtvae_fast.pictures.images import psnr
from hqtvae_fast.tune import quality
from hqtvae_fast.tune.quality import calibrate_decoder, decode_in_int8, draw


@pytest.fixture(scope="module")
def calibrated():
    checkpoint = checkpoints.load(GOLDEN / "class_parallel")
    calibrate_decoder(checkpoint, positions=100)
    return checkpoint


def test_all_but_the_ends_of_the_decoder_are_calibrated(calibrated):
    decoder = calibrated.vae.decoder
    spans = {name: layer.span for name, layer in roundable(calibrated.vae)}
    convolutions = sum(isinstance(module, (Conv3x3, Upsample)) for module in decoder.modules())
    assert len(spans) == convolutions - 1
    assert decoder.conv_in.span is None
    assert all(span[0] < 0 < span[1] for span in spans.values())
    after_silu = [span for name, span in spans.items() if name.endswith(("conv1", "conv2"))]
    assert all(span[0] >= -0.2786 for span in after_silu)
    assert all(module.span is None for module in calibrated.vae.encoder.modules() if isinstance(module, Conv3x3))


def test_calibrating_changes_nothing_else(calibrated):
    before = checkpoints.load(GOLDEN / "class_parallel")
    after = checkpoints.stored_state(calibrated)
    assert all(torch.equal(value, after.pop(key)) for key, value in checkpoints.stored_state(before).items())
    assert all(key.endswith(".input_span") for key in after)
    assert calibrated.vae.training == before.vae.training


def test_pictures_of_whole_numbers_are_near(calibrated):
    pipe = golden_pipeline("class_parallel")
    vae = copy.deepcopy(pipe.vae)
    assert torch.equal(decode_in_int8(vae, _codes(pipe)), decode_codes(vae, _codes(pipe)))
    for (_, layer), (_, own) in zip(roundable(vae), roundable(calibrated.vae), strict=True):
        layer.span = own.span
    exact, got = (decode(vae, _codes(pipe)) for decode in (decode_codes, decode_in_int8))
    assert 35 < float(psnr(got, exact).mean()) < 70


def test_where_the_processor_can_a_plan_takes_them(calibrated, monkeypatch):
    """Pretended: sums may saturate here, so that only who is called can be told."""
    monkeypatch.setattr(onednn, "cpu_features", lambda: ("AVX512-VNNI",))
    calls = []
    forward = onednn.Int8Conv.__call__
    monkeypatch.setattr(onednn.Int8Conv, "__call__", lambda self, x: calls.append(1) or forward(self, x))
    pipe = golden_pipeline("class_parallel")
    vae = copy.deepcopy(pipe.vae)
    for (_, layer), (_, own) in zip(roundable(vae), roundable(calibrated.vae), strict=True):
        layer.span = own.span
    decode_in_int8(vae, [level[:1] for level in _codes(pipe)])
    assert len(calls) == len(list(roundable(vae)))


def test_files_keep_spans(calibrated, tmp_path):
    checkpoints.save(calibrated, tmp_path)
    again = checkpoints.load(tmp_path)
    for (_, layer), (_, own) in zip(roundable(again.vae), roundable(calibrated.vae), strict=True):
        assert torch.equal(layer.span, own.span)
    assert again.vae.train().decoder.middle[0].conv1.span is None


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("vae.decoder.middle.0.conv1.input_span", torch.tensor([1.0, -1.0]), "ascending"),
        ("vae.decoder.middle.0.conv1.input_span", torch.tensor([-1.0, float("inf")]), "finite"),
        ("vae.decoder.middle.0.conv1.input_span", torch.ones(3), r"got torch.float32 \[3\]"),
        ("vae.decoder.conv_in.input_span", torch.tensor([-1.0, 1.0]), "this is none"),
    ],
)
def test_other_spans_are_refused(key, value, message, calibrated, tmp_path):
    checkpoints.save(calibrated, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), key: value}, file)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tmp_path)


def test_pictures_that_are_too_far_refuse_the_variant(calibrated, tmp_path, monkeypatch):
    checkpoints.save(calibrated, tmp_path)
    monkeypatch.setattr(onednn, "cpu_features", lambda: ("AVX512-VNNI",))
    name = quality.ModelName(str(tmp_path), None, "float32", "int8")
    monkeypatch.setattr(quality, "LEAST_PSNR", 0.0)
    assert quality.MAPS_ROUNDED not in quality.unfit(name, torch.device("cpu"), positions=20)
    monkeypatch.setattr(quality, "LEAST_PSNR", 1e3)
    assert "dB from fp32's" in quality.unfit(name, torch.device("cpu"), positions=20)[quality.MAPS_ROUNDED]


def _codes(pipe):
    return draw(pipe._checkpoint, torch.device("cpu"), 20).codes
