"""The table of precisions."""

from __future__ import annotations

import re

import torch
from conftest import GOLDEN

from benchmarks.studies.precision import compare, main


def test_compare():
    exact = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    assert compare(exact, exact) == (1.0, 0.0)
    same, kl = compare(exact, torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    assert same == 0.5
    p = torch.tensor([0.0, 1.0]).softmax(0)
    assert abs(kl - float((p[1] - p[0]) / 2)) < 1e-6  # log p - log q is -1 and 1


def test_table(capsys):
    main([str(GOLDEN / "class_parallel"), "--images", "2", "--dtype", "fp32"])
    rows = re.findall(r"(fp32|bf16|fp16) +(\S+) +([\d.]+)% +(\S+) +([\d.]+)% +(\S+)", capsys.readouterr().out)
    assert [row[:2] for row in rows] == [("fp32", "int8"), ("fp32", "fp8")]
    assert all(0 < float(kl) < 1e-2 for row in rows for kl in (row[3], row[5]))
    assert all(float(int8) < float(fp8) for int8, fp8 in zip(rows[0][3::2], rows[1][3::2], strict=True))
