"""The choices that are found of a model are those that it meets, and can be proven and timed."""

from __future__ import annotations

import pytest
import torch

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.ops.kernels.int8_linear import native
from hqtvae_fast.ops.kernels.packed_linear import onednn
from hqtvae_fast.tune.sites import find_sites


def choices(device, **options):
    pipe = HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype="fp32", **options)
    return [site for site in find_sites([pipe.transformer], pipe.vae, torch.device(device), (2,)) if site.is_choice]


def test_a_gpus_are_of_drawing_decoding_and_encoding():
    found = {site.op for site in choices("cuda")}
    assert {"skinny_linear", "sample_logits", "decode_attention", "upsample_conv", "hierarchical_quantize"} <= found


@pytest.mark.skipif(onednn.why_not(torch.zeros(768, 192)) is not None, reason="oneDNN packs nothing here")
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_cpus_are_how_weights_are_laid_out_and_who_takes_a_convolution(quantization):
    found = choices("cpu", quantization=quantization)
    assert {"packed_linear", "conv3x3"} <= {site.op for site in found}
    packed = {site.names for site in found if site.op == "packed_linear"}
    assert any("onednn" in names for names in packed)
    assert {"native/int8" in names for names in packed} == {quantization == "int8" and native.instructions() > 0}
