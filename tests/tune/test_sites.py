"""The choices that are found of a model are those that it meets, and can be proven and timed."""

from __future__ import annotations

import pytest
import torch
from conftest import golden_pipeline

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.ops.kernels.int8_linear import native
from hqtvae_fast.ops.kernels.packed_linear import onednn
from hqtvae_fast.ops.spec import all_specs
from hqtvae_fast.tune.jobs import prove_job
from hqtvae_fast.tune.sites import find_sites
from hqtvae_fast.tune.whole import ModelName, models_of
from hqtvae_fast.tune.worker import Desk


def choices(device, **options):
    pipe = HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype="fp32", **options)
    return [site for site in find_sites([pipe.transformer], pipe.vae, torch.device(device), (2,)) if site.is_choice]


def test_a_gpus_are_of_drawing_decoding_and_encoding():
    found = {site.op for site in choices("cuda")}
    assert {"skinny_linear", "sample_logits", "decode_attention", "upsample_conv", "hierarchical_quantize"} <= found


@pytest.mark.parametrize("quantization", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_a_gpus_products_read_what_they_will_be_quantized_to(quantization):
    """Of a model that is there and of one of shapes alone; those of 8-bit rows where an engine has them, each of which
    its spec can make again."""
    name = ModelName("demo", None, "bf16", quantization)
    kind = {"int8": "i8[", "fp8": "fp8["}[quantization]
    for model in (name.shapes(), name.open(torch.device("cpu"))):
        given = (models_of(model), model.vae, torch.device("cuda"), (1, 50))
        plain, both = find_sites(*given), find_sites(*given, ["", "quantized_products=all"])
        assert {site.key for site in plain} < {site.key for site in both}
        found = [site for site in both if site not in plain]
        assert {site.op for site in found} == {"quantized_linear"}
        assert all(kind in site.key and site.cost is not None and site.default == "triton" for site in found)
        assert all({"triton/128x128x128", "torch", "reference"} <= set(site.names) for site in found)
        library = {"int8": "torch/int_mm", "fp8": "torch/scaled_mm"}[quantization]
        assert all(library in site.names for site in found)
        skinny = [site for site in plain if site.op == "skinny_linear"]
        assert skinny
        assert all(kind in site.key and site.cost is not None for site in skinny)


def test_a_gpus_products_of_other_weights_are_not_in_8_bits():
    model = ModelName("demo", None, "bf16").shapes()
    sites = find_sites(models_of(model), model.vae, torch.device("cuda"), (50,), ["", "quantized_products=all"])
    assert "quantized_linear" not in {site.op for site in sites}


@pytest.mark.skipif(onednn.why_not(torch.zeros(768, 192)) is not None, reason="oneDNN packs nothing here")
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_cpus_are_how_weights_are_laid_out_and_who_takes_a_convolution(quantization):
    found = choices("cpu", quantization=quantization)
    assert {"packed_linear", "conv3x3"} <= {site.op for site in found}
    packed = {site.names for site in found if site.op == "packed_linear"}
    assert any("onednn" in names for names in packed)
    assert {"native/int8" in names for names in packed} == {quantization == "int8" and native.instructions() > 0}


@pytest.mark.parametrize("case", ["class_parallel", "text_parallel"])
def test_caches_in_8_bits_are_proven_at_the_choices_that_meet_them(case):
    """A prefix too: the spec's inputs are those of the choice, and libraries' attention is right there."""
    pipe, device = golden_pipeline(case), torch.device("cpu")
    found = find_sites([pipe.transformer], pipe.vae, device, [2], ("kv=int8",))
    kept = [site for site in found if "i8[" in site.key and "attention" in site.op]
    assert {site.op for site in kept} == {"decode_attention"} | ({"prefill_attention"} if "text" in case else set())
    desk = Desk(all_specs())
    for site in kept:
        assert "sdpa" in site.names
        answer = desk.answer(prove_job(site, "sdpa", None, device))
        assert answer["status"] == "right", answer
