"""The benchmark of tables runs and says what it found."""

from __future__ import annotations

import re

import torch

from benchmarks.ours import TINY
from benchmarks.tables import main
from hqtvae_fast.engine.tables import table_bytes

TIMES = r"without [\d.]+ ms \(min [\d.]+\), with [\d.]+ ms \(min [\d.]+\): -?[\d.]+% saved"


def test_it_prints_sizes_and_times(capsys):
    main(["--preset", "tiny", "--batch", "2", "--steps", "3", "--repeats", "2"])
    lines = capsys.readouterr().out.splitlines()
    megabytes = table_bytes(TINY.transformer, torch.float32) / 1e6
    assert lines[0].startswith(f"tables: {megabytes:.1f} MB")
    assert re.fullmatch(f"first step: {TIMES}", lines[1])
    assert re.fullmatch(f"a later step: {TIMES}", lines[2])
