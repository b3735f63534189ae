"""Biases that are left to the next norm change nothing but rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import golden_pipeline, golden_values

from hqtvae_fast.hardware import fp32_products
from hqtvae_fast.model import autoencoder

CASES = ("class_parallel", "stage1_conv2")


@pytest.fixture
def later(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(autoencoder, "adds_bias_later", lambda x: not torch.is_grad_enabled())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("later")
def test_golden_codes_and_pictures(name):
    vae, golden = golden_pipeline(name).vae, golden_values(name)
    codes = vae.encode(golden["image"])
    assert all(torch.equal(got, golden[key]) for got, key in zip(codes, ("codes_top", "codes_bottom"), strict=True))
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(codes), golden["recon"], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("later")
def test_no_convolution_between_norms_adds_its_own(monkeypatch):
    vae = golden_pipeline("class_parallel").vae
    added = []
    original = torch.nn.Conv2d._conv_forward

    def look(self, x, weight, bias):
        added.append((self, bias is not None))
        return original(self, x, weight, bias)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", look)
    codes = [torch.zeros(1, side, side, dtype=torch.int64) for side in vae.config.level_sides]
    with torch.no_grad():
        vae.decode(codes)
    inner = {
        conv for block in vae.decoder.modules() if isinstance(block, autoencoder.ResBlock) for conv in block.modules()
    }
    assert {conv for conv, bias in added if not bias} == {conv for conv, _ in added if conv in inner}
    assert {conv for conv, _ in added} & inner


def test_gradients_keep_biases_where_they_are():
    block = autoencoder.ResBlock(32, 64, 0.0)
    x = torch.randn(1, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    trunk = block(autoencoder.Trunk(x))
    assert trunk.shift is None
    trunk.sum().sum().backward()
    assert all(conv.bias.grad is not None for conv in (block.conv1, block.conv2, block.shortcut))


@pytest.mark.usefixtures("later")
def test_a_sum_adds_what_is_left():
    block = autoencoder.ResBlock(32, 64, 0.0)
    x = torch.randn(1, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    plain = block(autoencoder.Trunk(x)).sum()  # gradients are on
    with torch.no_grad():
        trunk = block(autoencoder.Trunk(x))
        torch.testing.assert_close(trunk.shift, block.conv2.bias + block.shortcut.bias)
        torch.testing.assert_close(trunk.sum(), plain, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_golden_pictures_on_a_gpu(name):
    """In fp32 without TF32, with every kernel that takes biases."""
    vae, golden = copy.deepcopy(golden_pipeline(name).vae).cuda(), golden_values(name)
    codes = [golden[key].cuda() for key in ("codes_top", "codes_bottom")]
    with torch.no_grad(), fp32_products(torch.device("cuda"), False):
        torch.testing.assert_close(vae.decode(codes).cpu(), golden["recon"], rtol=0, atol=1e-4)
