"""Golden reconstructions through the decoder's Triton kernels: those that take fp32 (group norm, the decoder's input
from codes), all of them in bf16, and with calibrated convolutions in 8 bits, norms and sums rounded on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from interpreted import Checks, needs_triton, outcomes

GOLDEN = Path(__file__).parents[1] / "golden"
PROGRAM = f"""
import os

import torch
from safetensors.torch import load_file

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.model import autoencoder
from hqtvae_fast.model.calibration import calibrate, roundable
from hqtvae_fast.modes import inference
from hqtvae_fast.ops.kernels.conv_bytes.reference import to_bytes
from hqtvae_fast.ops.kernels.quantized_conv import triton
from hqtvae_fast.ops.kernels.upsample_conv.triton import Tile
from hqtvae_fast.plan import Plan, recording, using
from hqtvae_fast.tune import quality

torch.set_num_threads(1)


def reconstruction(name, levels):
    os.environ["HQTVAE_BACKEND"] = "group_norm_silu=triton,code_features=triton"
    pipe = HQTVAEPipeline.from_pretrained("{GOLDEN}/" + name, device="cpu", dtype="fp32")
    golden = load_file("{GOLDEN}/" + name + "/golden.safetensors")
    codes = [golden["codes_" + level][:1] for level in levels]
    with torch.no_grad():
        torch.testing.assert_close(pipe.vae.decode(codes), golden["recon"][:1], rtol=0, atol=1e-4)


def two_levels():
    reconstruction("class_parallel", ("top", "bottom"))


def three_levels():
    reconstruction("class_level3", ("0", "1", "2"))


def bytes_in_bf16():
    # At most twice as far from the golden picture as torch's own kernels are, for the interpreter cuts off what a GPU
    # rounds.
    pipe = HQTVAEPipeline.from_pretrained("{GOLDEN}/class_parallel", device="cpu", dtype="fp32")
    golden = load_file("{GOLDEN}/class_parallel/golden.safetensors")
    codes = [golden["codes_" + level][:1] for level in ("top", "bottom")]
    pipe.vae.set_decoder_dtype(torch.bfloat16)
    pipe.vae.fold()
    known, later = {{}}, autoencoder.adds_bias_later
    kernels = "group_norm_silu=triton,upsample_conv=triton,conv_bytes=triton,add_maps=triton"
    for backends in ("reference", kernels):
        os.environ["HQTVAE_BACKEND"] = backends
        autoencoder.adds_bias_later = lambda x: True  # as on a GPU
        with torch.inference_mode():
            found = pipe.vae.decode_bytes(codes).float() - to_bytes(golden["recon"][:1]).float()
        known[backends] = found.abs()
    autoencoder.adds_bias_later = later
    plain, ours = known.values()
    assert ours.mean() <= 2 * plain.mean(), (ours.mean(), plain.mean())
    assert ours.max() <= 2 * plain.max(), (ours.max(), plain.max())


def eight_bits():
    '''As a GPU runs them, biases that are left to norms among it; beside their definition.'''
    os.environ["HQTVAE_BACKEND"] = "group_norm_silu=triton"
    pipe = HQTVAEPipeline.from_pretrained("{GOLDEN}/class_parallel", device="cpu", dtype="fp32")
    codes = [torch.arange(side * side).view(1, side, side) for side in pipe.vae.config.level_sides]
    calibrate(pipe.vae, lambda: pipe.vae.decode(codes))
    quality.has_int8 = lambda: False
    wanted = quality.decode_in_8_bits(pipe.vae, codes)
    autoencoder.adds_bias_later = lambda x: not torch.is_grad_enabled()
    triton.LARGE = triton.FEW = Tile(32, 64, 64, warps=4, stages=2)
    rounded, multiplied = [], []
    for name, notes in (("round_map", rounded), ("quantized_conv", multiplied)):
        note(name, notes)
    with inference():
        with recording() as known:
            pipe.vae.decode(codes)
        where = [key for key, (op, inputs) in known.items() if op == "conv3x3" and inputs[-1] is not None]
        assert not rounded and not multiplied
        with using(Plan("tuned", dict.fromkeys(where, "triton/int8"))):
            got = pipe.vae.decode(codes).mul(0.5).add(0.5).clamp(0, 1)
    layers = dict(roundable(pipe.vae))
    assert len(multiplied) == len(layers)
    assert len(rounded) == sum(isinstance(layer, autoencoder.Upsample) for layer in layers.values())
    assert float((got - wanted).abs().max()) < 1e-4 < float((got - quality.decode_codes(pipe.vae, codes)).abs().max())


def note(name, notes):
    '''Of the operators that the 8 bits call.'''
    from hqtvae_fast.ops.kernels.conv3x3 import triton as eight

    function = getattr(eight, name)
    setattr(eight, name, lambda *inputs, **how: notes.append(name) or function(*inputs, **how))
"""

NAMES = Checks(("two_levels", "three_levels"), slow=("bytes_in_bf16", "eight_bits"))


@needs_triton
@pytest.mark.parametrize("check", NAMES.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, NAMES.beside(check))[check] == ""
