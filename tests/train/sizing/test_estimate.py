"""What training is expected to take: of the work that is counted, on a machine whose rates are given."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.entrants.ours import BENCHMARK_PRESETS, TINY
from hqtvae_fast import hardware
from hqtvae_fast.config import PRESETS, HQTVAEConfig
from hqtvae_fast.hardware import Device
from hqtvae_fast.model.cost import decode_flops, encode_flops
from hqtvae_fast.train.sizing import estimate
from hqtvae_fast.train.sizing.estimate import (
    Extras,
    fits,
    training_bytes,
    training_precision,
    training_seconds,
    work,
)

SMALL, VAE = TINY, TINY.vae
MACHINE = Device("a machine", flops=100e9, bandwidth=20e9, memory=8 * 10**9, dtype=torch.float32)


@pytest.fixture
def machine(monkeypatch):
    """Rates that do not depend on who runs the test."""
    monkeypatch.setattr(estimate, "rates", lambda device, dtype: dataclasses.replace(MACHINE, dtype=dtype))


def seconds(stage: str, batch: int = 8, updates: int = 10, extras: Extras | None = None) -> float:
    return training_seconds(SMALL, stage, batch, updates, "cpu", "no", extras or Extras())


def test_stage1_counts_encoder_and_decoder_forward_and_backward():
    search = sum(2 * s * s * k * d for s, k, d in zip(VAE.level_sides, VAE.codebook_sizes, VAE.code_dims, strict=True))
    assert work(SMALL, "stage1").flops == 3 * (encode_flops(VAE) - search + decode_flops(VAE))


def test_stage2_counts_the_transformer_and_the_encoder_where_pictures_are_coded_as_they_come():
    alone, coding = work(SMALL, "stage2"), work(SMALL, "stage2", Extras(encodes=True))
    assert alone.flops % 3 == 0
    assert coding.flops == alone.flops + encode_flops(VAE)


def test_checkpointing_trades_arithmetic_for_memory():
    demo = BENCHMARK_PRESETS["demo"]
    plain, again = work(demo, "stage2"), work(demo, "stage2", Extras(checkpointing=True))
    assert plain.flops < again.flops <= plain.flops * 4 / 3
    assert again.saved < 0.7 * plain.saved
    assert again.parameters == plain.parameters


def test_what_is_saved_for_the_backward_pass_is_what_torch_keeps():
    """Bytes of tensors that a real pass keeps, in fp32: counted without one. (On the meta device
    attention keeps its weights, which the CPU's does not.)"""
    from hqtvae_fast.model import HQVAE

    model, kept = HQVAE(VAE).train(), {}
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        output = model(torch.zeros(2, 3, 32, 32))
    assert output.reconstruction.shape == (2, 3, 32, 32)
    real = sum(size for size, _ in kept.values())
    assert 2 * work(SMALL, "stage1").saved == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_seconds_grow_with_updates_and_pictures(machine, stage):
    assert seconds(stage, updates=20) == pytest.approx(2 * seconds(stage))
    assert seconds(stage, batch=8) < seconds(stage, batch=16) < 2 * seconds(stage, batch=8)


def test_a_discriminator_and_a_perceptual_loss_take_longer(machine):
    plain = seconds("stage1")
    assert seconds("stage1", extras=Extras(discriminator_channels=32)) > 1.2 * plain
    assert seconds("stage1", extras=Extras(perceptual=True)) > 1.2 * plain


def test_seconds_follow_the_rate_of_the_precision(monkeypatch):
    """Twice the rate in bf16: sooner, but not in half the time."""
    doubled = {torch.float32: 100e9, torch.bfloat16: 200e9}
    monkeypatch.setattr(
        estimate, "rates", lambda device, dtype: dataclasses.replace(MACHINE, flops=doubled[dtype], dtype=dtype)
    )
    plain, narrow = (training_seconds(PRESETS["S"], "stage2", 8, 1, "cpu", name) for name in ("no", "bf16"))
    assert 0.5 * plain < narrow < 0.8 * plain


def test_a_batch_fits_or_does_not():
    paper = PRESETS["S"]
    assert fits(SMALL, "stage1", 32, 4 * 10**9)
    assert not fits(paper, "stage1", 32, 16 * 10**9)
    assert fits(paper, "stage2", 16, 24 * 10**9, "no", Extras(checkpointing=True))
    assert not fits(paper, "stage2", 64, 24 * 10**9)
    assert training_bytes(SMALL, "stage1", 64) > training_bytes(SMALL, "stage1", 32)


def test_bf16_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_supports_bf16", lambda: True)
    assert training_precision("cpu") == "bf16"
    monkeypatch.setattr(hardware, "cpu_supports_bf16", lambda: False)
    assert training_precision("cpu") == "no"


def test_stage2_without_a_transformer_is_an_error():
    with pytest.raises(ValueError, match=r"stage: expected a configuration with a transformer"):
        work(HQTVAEConfig(vae=VAE, transformer=None), "stage2")
