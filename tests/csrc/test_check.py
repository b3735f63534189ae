"""The gate on registers, shared memory and spills: what ptxas says is read rightly, and a spill fails."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from .host_library import ROOT

SAID = """
ptxas info    : Compiling entry function 'settle_codes' for 'sm_80'
ptxas info    : Function properties for settle_codes
    {stack} bytes stack frame, {spilled} bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, {shared} bytes smem, 452 bytes cmem[0]
ptxas info    : Compile time = 79.461 ms
ptxas info    : Compiling entry function 'sample_logits_fp32' for 'sm_90a'
ptxas info    : Function properties for sample_logits_fp32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 46 registers, used 2 barriers
"""


@pytest.fixture
def check(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "csrc"), *sys.path])
    spec = importlib.util.spec_from_file_location("csrc_check", ROOT / "csrc/check.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "csrc_check", module)
    spec.loader.exec_module(module)
    return module


def test_a_spill_fails(check):
    spilled, clean = check.usages(SAID.format(stack=16, spilled=12, shared=4240))
    assert (spilled.kernel, spilled.arch, spilled.registers, spilled.static) == ("settle_codes", "sm_80", 40, 4240)
    assert spilled.problems == ["20 bytes spilled"]
    assert (clean.kernel, clean.arch, clean.dynamic) == ("sample_logits_fp32", "sm_90a", 32768)
    assert clean.problems == []


def test_too_much_shared_memory_fails(check):
    too_much = check.usages(SAID.format(stack=0, spilled=0, shared=163 * 1024 + 1))[0]
    assert "more than 166912 bytes of shared memory" in too_much.problems


def test_architectures(check):
    options = check.nvcc.gencode("80 90a 90-ptx")
    assert options[1::2] == [
        "arch=compute_80,code=sm_80",
        "arch=compute_90a,code=sm_90a",
        "arch=compute_90,code=compute_90",
    ]
    assert check.nvcc.gencode("80-ptx") == ["-gencode", "arch=compute_80,code=compute_80"]
    for wrong in ("hopper", "80-sass", ""):
        with pytest.raises(ValueError, match="HQTVAE_CUDA_ARCHS: expected"):
            check.nvcc.gencode(wrong)
