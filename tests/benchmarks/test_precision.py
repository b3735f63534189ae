"""The table of precisions."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
import torch
from conftest import GOLDEN

from benchmarks.studies import precision
from benchmarks.studies.precision import compare, main
from hqtvae_fast.ops.kernels.int8_linear import native


def test_compare():
    exact = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    assert compare(exact, exact) == (1.0, 0.0)
    same, kl = compare(exact, torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    assert same == 0.5
    p = torch.tensor([0.0, 1.0]).softmax(0)
    assert abs(kl - float((p[1] - p[0]) / 2)) < 1e-6  # log p - log q is -1 and 1


@pytest.mark.parametrize("limit, code", [(1.0, 0), (1e-12, 1)])
def test_table(limit, code, capsys, monkeypatch):
    monkeypatch.setattr(precision, "LIMIT", limit)
    with pytest.raises(SystemExit) if code else nullcontext() as ended:
        main([str(GOLDEN / "class_parallel"), "--images", "2", "--dtype", "fp32"])
    said = capsys.readouterr()
    assert ended is None or ended.value.code == code
    assert ("over the limit" in said.out) == ("expected a KL of at most" in said.err) == bool(code)
    row = r"fp32 +(\S.*?)  +([\d.]+)% +(\S+) +([\d.]+)% +(\S+) +(\S+)"
    rows = {
        weights: (float(top), float(bottom), float(mean))
        for weights, _, top, _, bottom, mean in re.findall(row, said.out)
    }
    assert list(rows) == ["int8", *(["int8, inputs too"] if native.instructions() else []), "fp8"]
    for top, bottom, mean in rows.values():
        assert 0 < min(top, bottom) <= mean * 1.06
        assert mean <= max(top, bottom) * 1.06 < 1e-2
    assert rows["int8"][2] < rows["fp8"][2]
    assert rows["int8"][2] < rows.get("int8, inputs too", rows["fp8"])[2]
