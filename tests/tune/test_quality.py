"""Variants that cost a model too much are no candidates."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN

from hqtvae_fast.ops.kernels.decode_attention import int8
from hqtvae_fast.ops.kernels.int8_linear import native
from hqtvae_fast.ops.spec import all_specs
from hqtvae_fast.tune import quality
from hqtvae_fast.tune.confirm import EIGHT_BITS
from hqtvae_fast.tune.quality import INPUTS_ROUNDED, unfit
from hqtvae_fast.tune.sites import find_sites, without
from hqtvae_fast.tune.whole import ModelName, models_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MODEL = ModelName(str(GOLDEN / "class_parallel"), None, "float32", "int8")
needs_kernel = pytest.mark.skipif(not native.instructions(), reason="no int8 kernel is built for this processor")


@needs_kernel
@pytest.mark.parametrize("case", ["class_parallel", "text_parallel", "uncond_reduce"])
def test_a_model_is_judged_by_its_own_drawings(case, monkeypatch):
    name = replace(MODEL, checkpoint=str(GOLDEN / case))
    assert unfit(name, CPU, positions=100) == {}
    monkeypatch.setattr(quality, "MOST_KL", 1e-12)
    assert "a KL of" in unfit(name, CPU, positions=100)[INPUTS_ROUNDED]


def test_what_rounds_no_inputs_is_not_judged(monkeypatch):
    monkeypatch.setattr(quality, "MOST_KL", 0.0)
    assert unfit(replace(MODEL, quantization=None), CPU) == {}
    assert unfit(replace(MODEL, quantization="fp8"), CPU) == {}
    assert unfit(replace(MODEL, checkpoint=None, preset="S"), CPU) == {}
    assert unfit(replace(MODEL, quantization=None), CUDA) == {}
    assert unfit(replace(MODEL, checkpoint=None, preset="S"), CUDA) == {}


@pytest.fixture
def gpu(monkeypatch):
    """What is opened and drawn there, is so here."""
    opened, drawn = ModelName.open, quality.draw
    monkeypatch.setattr(ModelName, "open", lambda self, device: opened(self, CPU))
    monkeypatch.setattr(quality, "draw", lambda made, device, positions: drawn(made, CPU, positions))


def kl_of(reason):
    return float(re.search(r"a KL of (\S+) nats", reason)[1])


@pytest.mark.parametrize("case", ["class_parallel", pytest.param("global_top", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_a_gpus_products_are_judged_too(gpu, kind, case, monkeypatch):
    """Both of the engine's words, each by itself: with the last product of a block left in 16 bits, predictions are no
    further off. Weights alone, which the user has asked for, are nearer than either."""
    name = replace(MODEL, checkpoint=str(GOLDEN / case), quantization=kind)
    monkeypatch.setattr(quality, "MOST_KL", 1.0)
    assert unfit(name, CUDA, positions=100) == {}
    monkeypatch.setattr(quality, "MOST_KL", 0.0)
    found = unfit(name, CUDA, positions=100)
    assert set(found) == {f"engine {word}" for word in EIGHT_BITS}
    but_down, every = (kl_of(found[f"engine {word}"]) for word in quality.ROWS_ROUNDED)
    monkeypatch.setattr(quality, "round_rows", lambda model, which: model)
    weights = kl_of(unfit(name, CUDA, positions=100)["engine quantized_products=all"])
    assert 0 < weights < but_down <= every  # as printed: of fp8, the last product is one like others


def test_between_the_two_one_is_refused(gpu, monkeypatch):
    monkeypatch.setattr(quality, "_kl", lambda exact, got, drawn: 3e-3 if eight_bits(got.body.layers[0]) else 1e-3)
    assert list(unfit(MODEL, CUDA, positions=20)) == ["engine quantized_products=all"]


def eight_bits(block):
    assert isinstance(block.mlp.up, quality.InEightBits)
    return isinstance(block.mlp.down, quality.InEightBits)


def test_what_is_no_number_is_refused(gpu, monkeypatch):
    monkeypatch.setattr(quality, "_kl", lambda exact, got, drawn: float("nan"))
    assert len(unfit(MODEL, CUDA, positions=20)) == 2


@pytest.mark.parametrize("quantization", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case",
    ["class_parallel", *(pytest.param(case, marks=pytest.mark.slow) for case in ("text_parallel", "uncond_reduce"))],
)
def test_keys_and_values_in_8_bits_are_judged_for_a_gpu(case, quantization, monkeypatch):
    """By what they do to logits, whatever the weights are rounded to."""
    name = replace(MODEL, checkpoint=str(GOLDEN / case), quantization=quantization)
    assert "engine kv=int8" not in unfit(name, CUDA, positions=100)
    monkeypatch.setattr(quality, "MOST_KL", 1e-12)
    assert "moves predictions by a KL of" in unfit(name, CUDA, positions=100)["engine kv=int8"]


@pytest.mark.parametrize(
    "planted",
    ["coarse", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("another head's scale", "not a number"))],
)
def test_a_planted_rounding_that_costs_too_much_is_refused(planted, monkeypatch):
    """Of the demo model, which was trained: 8 bits move it by 1e-4 and less, three bits by 1e-2, and what is wrong by
    far more."""
    name, rounded = ModelName("demo", None, "fp32", "int8"), int8.rounded
    others = unfit(name, CUDA, positions=320)
    assert "engine kv=int8" not in others
    if planted == "coarse":
        monkeypatch.setattr(int8, "LARGEST", 7.0)
    elif planted == "another head's scale":
        monkeypatch.setattr(int8, "rounded", lambda x: (rounded(x)[0], rounded(x)[1].roll(1, dims=1)))
    else:
        monkeypatch.setattr(int8, "rounded", lambda x: (rounded(x)[0], rounded(x)[1] * float("nan")))
    assert set(unfit(name, CUDA, positions=320)) == {*others, "engine kv=int8"}


@needs_kernel
def test_refused_variants_leave_the_choices():
    model = MODEL.open(CPU)
    sites = find_sites(models_of(model), model.vae, CPU, [1])
    products = [site for site in sites if site.op == "packed_linear"]
    assert {site.default for site in products} == {"native/int8"}
    left = [site for site in without(sites, {INPUTS_ROUNDED: "far off"}) if site.op == "packed_linear"]
    assert len(left) == len(products)
    names = {each.name for each in all_specs()["packed_linear"].backends} - {"native/int8"}
    assert all(site.default in names and set(site.names) <= names for site in left)
    assert without(sites, {}) == sites
