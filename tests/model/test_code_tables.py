"""Decoding from tables equals lookup, resampling and convolution, whichever levels are there."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from hqtvae_fast.config import VAEConfig
from hqtvae_fast.model.hqvae import HQVAE

TINY = VAEConfig(
    resolution=32,
    channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    latent_channels=24,
    embed_dim=12,
    codebook_sizes=(19, 23),
)
THREE = dataclasses.replace(TINY, codebook_sizes=(7, 11, 300), combine="sum")
CONFIGS = {
    "shuffle": TINY,
    "average": dataclasses.replace(TINY, resampler="average"),
    "conv": dataclasses.replace(TINY, resampler="conv"),
    "three levels": THREE,
    "three levels, conv": dataclasses.replace(THREE, resampler="conv"),
}


def make(config, seed=0):
    torch.manual_seed(seed)
    vae = HQVAE(config).eval()
    sides, sizes = config.level_sides, config.codebook_sizes
    return vae, [torch.randint(size, (2, side, side)) for side, size in zip(sides, sizes, strict=True)]


def features(vae, codes):
    """What the decoder reads, without and with tables."""
    seen = []
    handle = vae.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].double()))
    with torch.no_grad():
        vae.decode(codes)
        vae.fold()
        vae.decode(codes)
    handle.remove()
    return seen


@pytest.mark.parametrize("name", CONFIGS)
def test_tables_give_the_decoders_input(name):
    vae, codes = make(CONFIGS[name])
    for kept in itertools.product([True, False], repeat=len(codes)):
        if not any(kept):
            continue
        vae.prepared = False
        plain, folded = features(vae, [level if keep else None for level, keep in zip(codes, kept, strict=True)])
        torch.testing.assert_close(folded, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_cost_no_accuracy(dtype):
    vae, codes = make(TINY)
    with torch.no_grad():
        exact = make(TINY)[0].double()
        wanted = exact.combine([book.lookup(level) for book, level in zip(exact.codebooks, codes, strict=True)])
    vae.fold().set_decoder_dtype(dtype)
    with torch.no_grad():
        plain = vae.combine([book.lookup(level) for book, level in zip(vae.codebooks, codes, strict=True)])
        folded = vae.code_tables(codes)
    assert folded.dtype == dtype
    error, limit = ((x.double() - wanted).abs().max() for x in (folded, plain))
    assert error <= 2 * limit + 1e-6


def test_training_and_gradients_take_the_plain_path():
    vae, codes = make(TINY)
    vae.fold()
    vae.decode(codes).sum().backward()
    assert vae.post_quant_conv.weight.grad is not None
    assert vae.train().code_tables is None


def test_codes_may_be_narrower_integers():
    vae, codes = make(TINY)
    vae.fold()
    with torch.no_grad():
        assert torch.equal(vae.decode([level.int() for level in codes]), vae.decode(codes))


def test_tables_are_not_saved():
    vae, _ = make(TINY)
    before = set(vae.state_dict())
    assert set(vae.fold().state_dict()) == before
