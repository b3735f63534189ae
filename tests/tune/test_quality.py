"""Variants that cost a model too much are no candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN

from hqtvae_fast.ops.kernels.int8_linear import native
from hqtvae_fast.ops.spec import all_specs
from hqtvae_fast.tune import quality
from hqtvae_fast.tune.quality import INPUTS_ROUNDED, unfit
from hqtvae_fast.tune.sites import find_sites, without
from hqtvae_fast.tune.whole import ModelName, models_of

CPU = torch.device("cpu")
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
    assert unfit(MODEL, torch.device("cuda")) == {}


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
