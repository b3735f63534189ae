"""Whose kernel a CPU's weights are laid out for is a choice like any other, and follows the plan of each request."""

from __future__ import annotations

import pytest
import torch

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.backend import VARIABLE
from hqtvae_fast.model.linear import Linear
from hqtvae_fast.ops.kernels.packed_linear import onednn, packer
from hqtvae_fast.plan import Plan, recording, using

ODD = torch.zeros(96, 1024, dtype=torch.float32, device="cpu")  # large enough for oneDNN, and not ours: fp32

pytestmark = pytest.mark.skipif(onednn.why_not(ODD) is not None, reason=f"{onednn.why_not(ODD)}")


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_plan_chooses_the_layout():
    assert packer(ODD).name == "onednn"
    with using(Plan("reference")):
        assert packer(ODD).name == "reference"
    with using(Plan("tuned", {"packed_linear | f32[96,1024]": "reference"})), recording() as sites:
        assert packer(ODD).name == "reference"
        assert packer(torch.cat((ODD, ODD))).name == "onednn"
    assert "packed_linear | f32[96,1024]" in sites


@torch.no_grad()
def test_a_layer_is_laid_out_anew_where_another_plan_is_in_use():
    layer = Linear(1024, 96).eval()
    x = torch.randn(3, 1024, generator=torch.Generator().manual_seed(0))
    layer.pack()
    packed = layer._packed.value
    assert isinstance(packed, onednn.OneDNNWeight)
    with using(Plan("reference")):
        assert not layer.is_packed
        layer.pack()
        assert layer.is_packed
        assert layer._packed.value is None
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert not layer.is_packed
    layer.pack()
    assert isinstance(layer._packed.value, onednn.OneDNNWeight)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_a_pipelines_weights_follow_its_plan():
    def layouts(plan):
        pipe = HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype="fp32", plan=plan)
        pipe(prompt="owl, 3d", output_type="codes", progress=False)
        return {type(layer._packed.value) for layer in pipe.transformer.modules() if isinstance(layer, Linear)}

    assert layouts("reference") == {type(None)}
    assert onednn.OneDNNWeight in layouts("library")
