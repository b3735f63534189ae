"""What the launchers ask of CUDA, read from a run-time library of our own."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .host_library import SOURCES

DEFAULT = 48 * 1024
"""Bytes of shared memory, static and dynamic, that a block may have without being allowed more."""
NOT_SUPPORTED = 801
"""cudaErrorNotSupported."""
STATIC = 4240
"""Of sample_logits' kernels."""


def cuda_headers() -> Path | None:
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    homes += [str(Path(found).resolve().parents[1]) for found in [shutil.which("nvcc")] if found]
    folders = (Path(home, "include") for home in homes if home)
    return next((folder for folder in folders if (folder / "cuda_runtime.h").exists()), None)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    headers = cuda_headers()
    if headers is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and CUDA's headers")
    out, source = tmp_path_factory.mktemp("launch") / "launch.so", Path(__file__).with_name("launch.cpp")
    # Its own functions are what it calls, though a CUDA build of torch has loaded others of these names.
    flags = ("-std=c++20", "-shared", "-fPIC", "-Wl,-Bsymbolic", f"-I{SOURCES}", f"-I{headers}")
    subprocess.run(["g++", *flags, str(source), "-o", str(out)], check=True)
    return out


@pytest.fixture(scope="module")
def launched(library):
    return ctypes.CDLL(str(library)).launched


def test_V4_a_real_run_time_library_beside_it_is_not_asked(library, tmp_path):
    other, source = tmp_path / "libcudart.so", tmp_path / "cudart.c"
    names = ("cudaFuncSetAttribute", "cudaFuncGetAttributes", "cudaLaunchKernelExC")
    source.write_text("".join(f"int {name}() {{ return 35; }}\n" for name in names))  # no driver
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", str(source), "-o", str(other)], check=True)
    program = (
        "import ctypes, sys; ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL); "
        "sys.exit(ctypes.CDLL(sys.argv[2]).launched(16, 0, 0, 80, ctypes.byref(ctypes.c_int())))"
    )
    assert subprocess.run([sys.executable, "-c", program, str(other), str(library)], check=False).returncode == 0


@pytest.mark.parametrize("dynamic", [16, DEFAULT - STATIC, DEFAULT - STATIC + 16, DEFAULT, DEFAULT + 16, 200 * 1024])
def test_more_shared_memory_than_the_default_is_allowed_first(launched, dynamic):
    """What a kernel has of its own counts: 12,000 codes take 48,000 bytes, and 4,240 more."""
    allowed = ctypes.c_int()
    assert launched(dynamic, False, False, 80, ctypes.byref(allowed)) == 0
    assert allowed.value in (0, dynamic)
    assert allowed.value == dynamic or dynamic + STATIC <= DEFAULT


@pytest.mark.parametrize("cooperative", [False, True])
@pytest.mark.parametrize("dependent", [False, True])
def test_a_launch_is_of_the_kind_that_was_asked_for(launched, cooperative, dependent):
    assert launched(200 * 1024, cooperative, dependent, 90, ctypes.byref(ctypes.c_int())) == 0


def test_code_that_does_not_wait_is_not_launched_early(launched):
    """Of an older architecture, which a Hopper GPU runs too (HQTVAE_CUDA_ARCHS=80-ptx)."""
    assert launched(16, True, False, 80, ctypes.byref(ctypes.c_int())) == 0
    assert launched(16, True, True, 80, ctypes.byref(ctypes.c_int())) == NOT_SUPPORTED
