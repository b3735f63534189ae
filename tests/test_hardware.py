"""Peaks, floors, and what this machine computes in."""

from __future__ import annotations

import dataclasses
import math
import platform

import pytest
import torch

from hqtvae_fast import hardware
from hqtvae_fast.hardware import (
    DEVICES,
    Device,
    cpu_supports_bf16,
    default_dtype,
    floor_seconds,
    measure_this_machine,
    published,
)


@pytest.mark.parametrize(
    "key,tflops,gigabytes_per_second,gigabytes",
    [
        ("A100-40GB", 312, 1555, 40),
        ("A100-80GB", 312, 2039, 80),
        ("H100", 990, 3350, 80),
        ("H200", 990, 4800, 141),
        ("L40S", 362, 864, 48),
        ("RTX4090", 165.2, 1008, 24),
    ],
)
def test_published_peaks(key: str, tflops: float, gigabytes_per_second: float, gigabytes: float) -> None:
    device = DEVICES[key]
    assert device.flops == pytest.approx(tflops * 1e12)
    assert device.bandwidth == gigabytes_per_second * 1e9
    assert device.memory == gigabytes * 1e9
    assert device.dtype is torch.bfloat16


def test_shared_memory_of_a_block_is_what_kernels_are_compiled_for() -> None:
    assert DEVICES["A100-80GB"].shared_memory == 163 * 1024
    assert DEVICES["H100"].shared_memory == 227 * 1024


@pytest.mark.parametrize("key", DEVICES)
def test_published_finds_a_device_by_key_and_by_cuda_name(key: str) -> None:
    assert published(key) is DEVICES[key]
    assert published(DEVICES[key].name) is DEVICES[key]


def test_published_lists_the_names_it_knows() -> None:
    with pytest.raises(ValueError, match=r"expected one of A100-40GB.*got 'abacus'"):
        published("abacus")


def test_a_device_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEVICES["H100"].flops = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("flops,num_bytes,seconds", [(100, 10, 10), (100, 200, 20), (0, 0, 0), (0, 5, 0.5)])
def test_floor_is_the_slower_of_arithmetic_and_traffic(flops: float, num_bytes: float, seconds: float) -> None:
    assert floor_seconds(flops, num_bytes, Device("toy", flops=10, bandwidth=10, memory=0)) == seconds


# -------------------------------------------------------------------------------------------------------------- dtypes


def _pretend(monkeypatch: pytest.MonkeyPatch, *, machine: str, onednn: bool, instructions: set[str]) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions, raising=False)


@pytest.mark.parametrize(
    "machine,onednn,instructions,expected",
    [
        ("x86_64", True, {"_is_avx512_bf16_supported"}, True),
        ("AMD64", True, {"_is_amx_tile_supported"}, True),
        ("x86_64", True, set(), False),  # plain AVX-512: oneDNN emulates
        ("x86_64", False, {"_is_avx512_bf16_supported"}, False),
        ("aarch64", True, set(), True),
        ("aarch64", False, set(), False),
    ],
)
def test_bf16_on_a_cpu_needs_onednn_and_instructions(
    monkeypatch: pytest.MonkeyPatch, machine: str, onednn: bool, instructions: set[str], expected: bool
) -> None:
    _pretend(monkeypatch, machine=machine, onednn=onednn, instructions=instructions)
    assert cpu_supports_bf16() is expected
    assert default_dtype("cpu") is (torch.bfloat16 if expected else torch.float32)


def test_no_bf16_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert cpu_supports_bf16() is False


def test_no_bf16_when_torch_has_lost_its_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, machine="x86_64", onednn=True, instructions=set())
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert cpu_supports_bf16() is False


@pytest.mark.parametrize(
    "capability,expected", [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_default_dtype_on_cuda(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert default_dtype(torch.device("cuda", 0)) is expected


def test_default_dtype_elsewhere() -> None:
    assert default_dtype("meta") is torch.float32


# -------------------------------------------------------------------------------------------------------- measurement


def _check_measured(device: Device) -> None:
    for value in (device.flops, device.bandwidth, device.memory):
        assert math.isfinite(value)
        assert value > 0
    assert device.name.endswith("measured")


def test_measure_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With small tensors, whose rates say nothing of the machine."""
    monkeypatch.setattr(hardware, "BUDGET_SECONDS", 0.01)
    monkeypatch.setattr(hardware, "CPU_GEMM_SIZES", (32, 64))
    monkeypatch.setattr(hardware, "CPU_STREAM_BYTES", 2**20)
    device = measure_this_machine("cpu")
    _check_measured(device)
    assert device.dtype is default_dtype("cpu")
    assert device.multiprocessors == device.shared_memory == 0


def test_a_size_that_would_take_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_best_seconds", lambda run, device, budget: 1.0)
    rate = hardware._gemm_rate(torch.device("cpu"), torch.float32, (8, 16, 32))
    assert rate == 2 * 8**3  # 16 would take 8 times as long, beyond the budget


@pytest.mark.slow
def test_measure_this_machine() -> None:
    device = measure_this_machine("cpu")
    _check_measured(device)
    assert 1e9 < device.flops < 1e15
    assert 1e9 < device.bandwidth < 1e13


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_measured_gpu_stays_under_its_published_peaks() -> None:
    device = measure_this_machine("cuda")
    _check_measured(device)
    assert device.multiprocessors > 0
    assert device.shared_memory >= 48 * 1024
    name = device.name.removesuffix(", measured")
    if name in {peak.name for peak in DEVICES.values()}:
        peak = published(name)
        assert device.multiprocessors == peak.multiprocessors
        assert device.shared_memory == peak.shared_memory
        assert 0.5 * peak.flops < device.flops <= 1.02 * peak.flops
        assert 0.7 * peak.bandwidth < device.bandwidth <= 1.02 * peak.bandwidth


def test_measuring_takes_no_number_from_the_global_stream():
    before = torch.get_rng_state()
    hardware._gemm_rate(torch.device("cpu"), torch.float32, (8, 16))
    assert torch.equal(torch.get_rng_state(), before)
