"""The table of precisions."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
import torch
from conftest import GOLDEN

from benchmarks.studies import precision
from benchmarks.studies.precision import main, off_by_chance
from hqtvae_fast.ops.kernels.int8_linear import native
from hqtvae_fast.tune.quality import compare


def test_compare():
    exact = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    assert compare(exact, exact) == (1.0, 0.0)
    same, kl = compare(exact, torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    assert same == 0.5
    p = torch.tensor([0.0, 1.0]).softmax(0)
    assert abs(kl - float((p[1] - p[0]) / 2)) < 1e-6  # log p - log q is -1 and 1


def test_draws_of_the_same_logits_are_off_by_chance_alone():
    generator = torch.Generator().manual_seed(0)
    exact = [3 * torch.randn(2, 40, 64, generator=generator, dtype=torch.float32) for _ in range(2)]
    assert 1e-3 < off_by_chance(exact, exact) < 1 - 1e-3
    moved = torch.randn(64, generator=generator, dtype=torch.float32)  # some codes are liked more everywhere
    chances = [off_by_chance(exact, [level + share * moved for level in exact]) for share in (1e-3, 0.3, 1.0)]
    assert chances[0] > 1e-3 > chances[1] > chances[2]


@pytest.mark.parametrize("limit, code", [(1.0, 0), (1e-12, 1)])
def test_table(limit, code, capsys, monkeypatch):
    monkeypatch.setattr(precision, "MOST_KL", limit)
    monkeypatch.setattr(precision, "LEAST_PSNR", 30.0)  # random weights: these pictures are noise
    with pytest.raises(SystemExit) if code else nullcontext() as ended:
        main([str(GOLDEN / "class_parallel"), "--images", "2", "--dtype", "fp32"])
    said = capsys.readouterr()
    assert ended is None or ended.value.code == code
    assert ("over the limit" in said.out) == ("a KL of at most" in said.err) == bool(code)
    row = r"fp32 +(\S.*?)  +([\d.]+)% +(\S+) +([\d.]+)% +(\S+) +(\S+) +(?:the same|[\d.]+ dB) +p = (\S+)"
    rows = {
        weights: (float(top), float(bottom), float(mean))
        for weights, _, top, _, bottom, mean, _ in re.findall(row, said.out)
    }
    own = ["int8, all"] if native.instructions() else []
    assert list(rows) == ["fp32", "int8", *own, "int8, most", "int8, rows", "fp8"]
    assert max(rows.pop("fp32")) < 1e-9
    for top, bottom, mean in rows.values():
        assert 0 < min(top, bottom) <= mean * 1.06
        assert mean <= max(top, bottom) * 1.06 < 1e-2
    assert rows["int8"][2] < rows["fp8"][2]
    assert rows["int8"][2] < rows.get("int8, all", rows["fp8"])[2]
    assert rows["int8"][2] < rows["int8, most"][2] < rows["int8, rows"][2]


def test_pictures_are_judged_too(capsys, monkeypatch):
    """bf16 moves pictures, and int8's rows are held to a number of dB."""
    monkeypatch.setattr(precision, "LEAST_PSNR", 1e3)
    with pytest.raises(SystemExit):
        main([str(GOLDEN / "class_parallel"), "--images", "1", "--dtype", "bf16"])
    said = capsys.readouterr()
    assert "bf16, int8: at least 1000 dB" in said.err
    assert "bf16, bf16" not in said.err
    assert min(float(number) for number in re.findall(r"([\d.]+) dB  ", said.out)) > 30
