"""A golden reconstruction through the Triton kernels that take fp32: group norm, and the decoder's input from codes."""

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
"""

CHECKS = ("two_levels", "three_levels")


@needs_triton
@pytest.mark.parametrize("check", CHECKS)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS)[check] == ""
