"""Each backend is computed by the file of its name."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from hqtvae_fast.backend import Backend
from hqtvae_fast.ops import kernels

OPS = [f"{kernels.__name__}.{op.name}" for op in pkgutil.iter_modules(kernels.__path__)]


def backends(op):
    """All that an op's folder registers."""
    registered = [value for value in vars(importlib.import_module(op)).values() if isinstance(value, tuple)]
    return [backend for value in registered for backend in value if isinstance(backend, Backend)]


def module_of(run):
    return getattr(run, "func", run).__module__  # a variant gives the function its tile


@pytest.mark.parametrize("op", OPS)
def test_a_backend_is_in_the_file_of_its_name(op):
    found = {backend.name: module_of(backend.run) for backend in backends(op)}
    # A variant may have a file of its own: native/int8 is in int8.py.
    strays = {name for name, file in found.items() if file not in {f"{op}.{part}" for part in name.split("/")}}
    assert strays == set()
    assert found, f"{op}: registers no backend"


@pytest.mark.parametrize("op", OPS)
def test_triton_kernels_lie_beside_their_launchers(op):
    files = {module.name for module in pkgutil.iter_modules(importlib.import_module(op).__path__)}
    # Of the one rows are made inside the other op's kernels; the other one rounds and multiplies by two ops.
    computed_by = {"hierarchical_quantize": "nearest_code", "conv3x3": "quantized_conv"}
    if op.rpartition(".")[2] not in computed_by:
        assert ("triton" in files) == ("triton_kernels" in files), files


def test_the_page_names_variants_that_there_are():
    page = (Path(__file__).parents[2] / "docs" / "ops.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", page, flags=re.MULTILINE)
    assert len(rows) >= 8
    for op, tiles, libraries in rows:
        known = {backend.name for backend in backends(f"{kernels.__name__}.{op}")}
        named = [f"triton/{tile}" for tile in tiles.split(", ") if tile != "-"] + libraries.split(", ")
        assert set(named) <= known, f"{op}: {sorted(set(named) - known)}"
