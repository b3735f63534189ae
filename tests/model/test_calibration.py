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
from hqtvae_fast.model.autoencoder import Upsample
from hqtvae_fast.model.calibration import roundable
from hqtvae_fast.model.convolution import Conv3x3
from hqtvae_fast.ops.kernels.conv3x3 import EIGHT_BITS, INT8, onednn
from hqtvae_fast.pictures.images import psnr
from hqtvae_fast.tune import quality
from hqtvae_fast.tune.quality import calibrate_decoder, convolutions_left, decode_in_8_bits, draw
from hqtvae_fast.tune.sites import find_sites, without

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


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
    assert torch.equal(decode_in_8_bits(vae, _codes(pipe)), decode_codes(vae, _codes(pipe)))
    for (_, layer), (_, own) in zip(roundable(vae), roundable(calibrated.vae), strict=True):
        layer.span = own.span
    exact, got = (decode(vae, _codes(pipe)) for decode in (decode_codes, decode_in_8_bits))
    assert 35 < float(psnr(got, exact).mean()) < 70


def test_where_the_processor_can_a_plan_takes_them(calibrated, monkeypatch):
    """Pretended: sums may saturate here, so that only who is called can be told."""
    monkeypatch.setattr(onednn, "cpu_features", lambda: ("AVX512-VNNI",))
    calls = []
    multiply = onednn.Int8Conv.multiply
    monkeypatch.setattr(onednn.Int8Conv, "multiply", lambda self, x: calls.append(x.dtype) or multiply(self, x))
    pipe = golden_pipeline("class_parallel")
    vae = copy.deepcopy(pipe.vae)
    for (_, layer), (_, own) in zip(roundable(vae), roundable(calibrated.vae), strict=True):
        layer.span = own.span
    decode_in_8_bits(vae, [level[:1] for level in _codes(pipe)])
    assert calls == [torch.uint8] * len(list(roundable(vae)))


@pytest.mark.parametrize("kind", [Conv3x3, Upsample])
def test_numbers_follow_the_weights_in_the_memory_that_captures_read(kind, calibrated):
    vae = copy.deepcopy(golden_pipeline("class_parallel").vae)
    layer = next(layer for _, layer in roundable(vae) if isinstance(layer, kind))
    layer.span = torch.tensor([-0.3, 2.0])
    conv, weight = (layer.conv, layer.folded) if kind is Upsample else (layer, layer.weight)
    made = layer._made_in("triton/int8", weight, conv.bias, kind is Upsample)
    assert layer._made_in("triton/int8/64x64", weight, conv.bias, kind is Upsample).numbers is made.numbers
    numbers, where = made.numbers.clone(), made.numbers.data_ptr()
    with torch.no_grad():
        conv.weight.neg_()
    vae.look()
    assert torch.equal(made.numbers, -numbers)
    assert layer._made_in("triton/int8", weight, conv.bias, kind is Upsample).numbers.data_ptr() == where
    assert copy.deepcopy(layer)._int8.value is None


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


def name_of(folder, kind="int8"):
    return quality.ModelName(str(folder), None, "float32", kind)


def test_pictures_that_are_too_far_refuse_the_variant(calibrated, tmp_path, monkeypatch):
    checkpoints.save(calibrated, tmp_path)
    monkeypatch.setattr(onednn, "cpu_features", lambda: ("AVX512-VNNI",))
    label = f"conv3x3 {INT8}"
    monkeypatch.setattr(quality, "LEAST_PSNR", 0.0)
    assert label not in quality.unfit(name_of(tmp_path), CPU, positions=20)
    monkeypatch.setattr(quality, "LEAST_PSNR", 1e3)
    assert "dB from fp32's" in quality.unfit(name_of(tmp_path), CPU, positions=20)[label]


@pytest.mark.parametrize("kind, other", [("int8", "fp8"), ("fp8", "int8")])
def test_a_gpus_variants_are_judged_too(kind, other, calibrated, tmp_path, monkeypatch):
    """And refused where spans are planted that are far too narrow, with all their tiles; the other form's always.
    Nothing is refused of a model whose decoder is not calibrated."""
    monkeypatch.setattr(quality, "LEAST_PSNR", 25.0)
    own, others = (
        {f"conv3x3 {name}" for name in EIGHT_BITS if name.startswith(f"triton/{form}")} for form in (kind, other)
    )
    assert len(own) == len(others) == 5
    checkpoints.save(calibrated, tmp_path / "good")
    monkeypatch.setattr(quality, "EIGHT_BITS", ())  # words of the engine, of which convolutions know nothing
    found = quality.unfit(name_of(tmp_path / "good", kind), CUDA, positions=20)
    assert found.keys() == others
    assert set(found.values()) == {f"in {other}; the model is in {kind}"}
    bad = copy.deepcopy(calibrated)
    for _, layer in roundable(bad.vae):
        layer.span = 0.02 * layer.span
    checkpoints.save(bad, tmp_path / "bad")
    found = quality.unfit(name_of(tmp_path / "bad", kind), CUDA, positions=20)
    assert found.keys() == own | others
    assert all("dB from fp32's; expected at least 25" in found[label] for label in own)
    assert quality.unfit(name_of(GOLDEN / "class_parallel", kind), CUDA, positions=20) == {}


def test_a_gpu_meets_the_choice_where_the_decoder_is_calibrated(calibrated, tmp_path):
    """Of a file's shapes alone; what was refused beforehand is no candidate."""
    checkpoints.save(calibrated, tmp_path)
    shapes = name_of(tmp_path).shapes()
    sites = [site for site in find_sites([], shapes.vae, CUDA, [2]) if site.op == "conv3x3"]
    assert {site.default for site in sites} == {"reference"}
    assert all({"triton/int8", "triton/int8/128x64", "triton/fp8"} <= set(site.names) for site in sites)
    assert any(" True f32[2]" in site.key for site in sites)
    assert all(site.is_choice for site in sites)
    assert not [site for site in find_sites([], shapes.vae, CUDA, [2]) if site.key.endswith(" int8")]
    left = convolutions_left(shapes.vae, CUDA, {f"conv3x3 {name}": "far" for name in EIGHT_BITS if "fp8" in name})
    assert left == ["triton/int8"]
    known = find_sites([], shapes.vae, CUDA, [2], convolutions=left)
    assert {site.op for site in known if site.key.endswith(" int8")} == {"group_norm_silu"}
    assert all(site.default == "triton" and site.is_choice for site in known if site.key.endswith(" int8"))
    assert not {"quantized_conv", "round_map"} & {site.op for site in known}
    refused = {f"conv3x3 {name}": "far" for name in EIGHT_BITS}
    assert all(site.names == ("reference",) for site in without(sites, refused))
    plain = name_of(GOLDEN / "class_parallel").shapes()
    assert not [site for site in find_sites([], plain.vae, CUDA, [2]) if site.op == "conv3x3"]
    assert convolutions_left(plain.vae, CUDA, {}) == []


@pytest.mark.slow
def test_the_demo_model_in_8_bits():
    """As a GPU's kernels are defined: int8 keeps its limit, fp8, with 3 bits after the leading one, does not."""
    made = checkpoints.load("demo")
    calibrate_decoder(made, positions=640)
    name = quality.ModelName("demo", None, "float32")
    exact = name.open(CPU)
    for (_, layer), (_, own) in zip(roundable(exact.vae), roundable(made.vae), strict=True):
        layer.span = own.span
    drawn = draw(exact, CPU, 640)
    assert quality._too_far(exact.vae, exact.vae, drawn, "int8") is None
    assert "expected at least 40" in quality._too_far(exact.vae, exact.vae, drawn, "fp8")


def _codes(pipe):
    return draw(pipe._checkpoint, torch.device("cpu"), 20).codes
