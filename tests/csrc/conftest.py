"""Fixtures: the library of device functions, compiled once a session, and the kernel's draw in it."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable

import pytest
import torch

from .host_library import compile_library, pointer

Draw = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return compile_library(tmp_path_factory.mktemp("host"))


@pytest.fixture
def draw(host: ctypes.CDLL) -> Draw:
    """The kernel's draw of fp32 logits [M, K], arguments as the reference's."""

    def run(logits, temperature, top_k, top_p, seeds, step, position):
        rows, codes = logits.shape
        out = torch.empty(rows, dtype=torch.int64)
        logits = logits.float().contiguous()
        invalid = host.draw(
            *(pointer(logits), rows, codes, ctypes.c_float(temperature)),
            *(ctypes.c_int64(codes if top_k is None else top_k), ctypes.c_float(1.0 if top_p is None else top_p)),
            *(pointer(seeds), ctypes.c_int64(step), ctypes.c_int64(position), pointer(out)),
        )
        assert invalid == bool(logits.isnan().any())
        return out

    return run
