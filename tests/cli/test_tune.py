"""``hqtvae tune``: what it prints, and that later commands go by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import GOLDEN

from hqtvae_fast.engine import batches

from .conftest import Run, assert_one_line_error

MODEL = (GOLDEN / "class_parallel", "--device", "cpu", "--dtype", "fp32")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(batches, "SECONDS", 0.0)


def test_prints_what_it_found_and_keeps_it(run: Run, tmp_path: Path) -> None:
    result = run("tune", *MODEL, "--sizes", "1,2")
    assert result.code == 0
    assert "batch 1: " in result.err
    assert "fastest" in result.out
    assert "batches.json" in result.out
    (entry,) = json.loads((tmp_path / "cache" / "batches.json").read_text())
    assert entry["facts"]["dtype"] == "float32"
    assert set(entry["seconds"]) <= {"1", "2"}


@pytest.mark.parametrize("sizes", ["0", "a", "3-1", ""])
def test_bad_sizes(run: Run, sizes: str) -> None:
    assert_one_line_error(run("tune", *MODEL, "--sizes", sizes), "--sizes: expected")
