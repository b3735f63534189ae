"""Golden reconstructions through the decoder's Triton kernels: those that take fp32 (group norm, the decoder's input
from codes), and all of them in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
from interpreted import needs_triton, outcomes

GOLDEN = Path(__file__).parents[1] / "golden"
PROGRAM = f"""
import os

import torch
from safetensors.torch import load_file

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.model import autoencoder
from hqtvae_fast.ops.kernels.conv_bytes.reference import to_bytes

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
"""

CHECKS = ("two_levels", "three_levels", "bytes_in_bf16")


@needs_triton
@pytest.mark.parametrize("check", CHECKS)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS)[check] == ""
