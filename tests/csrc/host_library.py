"""The device functions of csrc/cuda compiled as plain C++, for ctypes."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc/cuda"
# No joining of products and sums, as the device code has none where bits matter.
FLAGS = ("-O2", "-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread")


def pointer(x: torch.Tensor | None) -> ctypes.c_void_p:
    assert x is None or x.is_contiguous()
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def compile_library(folder: Path, *options: str) -> ctypes.CDLL:
    out, source = folder / "host.so", Path(__file__).with_name("host.cpp")
    subprocess.run(["g++", *FLAGS, *options, f"-I{SOURCES}", str(source), "-o", str(out)], check=True)
    library = ctypes.CDLL(str(out))
    library.near_limit.restype = ctypes.c_float
    library.edge_of.restype = ctypes.c_uint32
    library.draw.restype = ctypes.c_bool
    return library
