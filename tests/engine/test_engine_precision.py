"""What the engine is told to compute in, and whether fp32 products may be TF32."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from conftest import GOLDEN, engine

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine import options
from hqtvae_fast.engine.options import EngineOptions, Precision, check_options, check_precision, read_precision
from hqtvae_fast.hardware import fp32_products

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def flags():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def test_names_and_dtypes():
    assert read_precision("tf32") == Precision(torch.float32, tf32=True)
    assert read_precision("fp32") == read_precision(torch.float32) == Precision(torch.float32)
    assert read_precision(torch.bfloat16) == read_precision("bf16")
    with pytest.raises(ValueError, match="expected one of fp32, tf32, bf16, fp16"):
        read_precision("fp64")


@pytest.mark.parametrize("tf32,wanted", [(True, "tf32"), (False, "ieee")])
def test_fp32_products_holds_meanwhile_only(tf32, wanted):
    before = flags()
    with fp32_products(CPU, tf32):
        assert flags() == before
    with fp32_products(CUDA, tf32):
        assert flags() == (wanted, wanted)
    assert flags() == before


def entered(tf32, inside, leave):
    """A thread that holds the switches until ``leave``; its flags, afterwards."""
    seen = []

    def hold():
        with fp32_products(CUDA, tf32):
            inside.set()
            assert leave.wait(20)
            seen.append(flags())

    thread = threading.Thread(target=hold)
    thread.start()
    return thread, seen


def test_a_thread_that_leaves_does_not_change_the_others_products():
    before, inside, leave = flags(), threading.Event(), threading.Event()
    with fp32_products(CUDA, True):
        thread, seen = entered(True, inside, leave)
        assert inside.wait(20)
    assert flags() == ("tf32", "tf32")
    leave.set()
    thread.join()
    assert seen == [("tf32", "tf32")]
    assert flags() == before


def test_a_thread_that_wants_other_products_waits():
    before, inside, leave = flags(), threading.Event(), threading.Event()
    leave.set()
    with fp32_products(CUDA, True):
        thread, seen = entered(False, inside, leave)
        assert not inside.wait(0.05)
        assert flags() == ("tf32", "tf32")
        with fp32_products(CUDA, False):  # one that holds them already does not wait
            assert flags() == ("ieee", "ieee")
        assert flags() == ("tf32", "tf32")
    thread.join()
    assert seen == [("ieee", "ieee")]
    assert flags() == before


@pytest.mark.parametrize("everywhere", [pytest.param("none", marks=pytest.mark.slow), "tf32"])
def test_encoding_is_fp32_whatever_holds_around_it(everywhere):
    """Also where a user has set the switch by its new name, which torch does not let the old one read. In a process of
    its own: what was set is not all unset again."""
    program = f"""
import torch
from hqtvae_fast.hardware import fp32_products
from hqtvae_fast.model.hqvae import _full_precision

def flags():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision

torch.backends.fp32_precision = "{everywhere}"
before, cuda = flags(), torch.device("cuda")
with _full_precision(cuda):
    assert flags() == ("ieee", "ieee"), flags()
with fp32_products(cuda, tf32=True), _full_precision(cuda):
    assert flags() == ("ieee", "ieee"), flags()
assert flags() == before, flags()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_tf32_needs_a_gpu():
    with pytest.raises(ValueError, match=r"dtype: tf32 .* expected a CUDA device, got cpu"):
        HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="tf32")
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32")
    with pytest.raises(ValueError, match="tf32"):
        pipe.to(dtype="tf32")
    assert pipe.precision == Precision(torch.float32)  # as before


@pytest.mark.parametrize("capability,allowed", [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_needs_the_instruction(capability, allowed, monkeypatch):
    monkeypatch.setattr(options.torch.cuda, "get_device_capability", lambda device: capability)
    bf16 = Precision(torch.bfloat16)
    check_precision(bf16, "int8", CUDA)
    if allowed:
        check_precision(bf16, "fp8", CUDA)
    else:
        with pytest.raises(ValueError, match=r"fp8 expects compute capability 8\.9 or above; got 8\.\d: int8 runs"):
            check_precision(bf16, "fp8", CUDA)


@pytest.mark.parametrize("capability,allowed", [((8, 9), False), ((9, 0), True), ((10, 0), True)])
def test_dependent_launch_needs_hopper(capability, allowed, monkeypatch):
    wanted = EngineOptions(dependent_launch=True)
    with pytest.raises(ValueError, match=r"dependent_launch: expected a GPU of compute capability 9\.0 .*; got cpu"):
        HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", plan=engine("dependent_launch"))
    monkeypatch.setattr(options.torch.cuda, "get_device_capability", lambda device: capability)
    if allowed:
        check_options(wanted, CUDA)
    else:
        with pytest.raises(ValueError, match=r"got 8\.9"):
            check_options(wanted, CUDA)


@pytest.mark.gpu
def test_tf32_changes_products_on_a_gpu():
    x = torch.randn(512, 512, device="cuda")
    exact = x.double() @ x.double()
    errors = []
    for tf32 in (False, True):
        with fp32_products(CUDA, tf32):
            errors.append(float((x @ x - exact).abs().max()))
    assert errors[1] > 20 * errors[0]
