"""The benchmark of a step's options runs and says what it found."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.entrants.ours import TINY
from benchmarks.suites.steps import main
from hqtvae_fast.engine.cache import table_bytes

TIME = r"[\d.]+ ms \(min [\d.]+\)"
TIMES = rf"none {TIME}; tables {TIME}, -?[\d.]+% saved; skip_query {TIME}, -?[\d.]+% saved"
SMALL = ["--preset", "tiny", "--batch", "2", "--steps", "3", "--repeats", "2"]


def test_it_prints_sizes_and_times(capsys):
    main(SMALL)
    lines = capsys.readouterr().out.splitlines()
    megabytes = table_bytes(TINY.transformer, torch.float32) / 1e6
    assert lines[0].startswith(f"tables: {megabytes:.1f} MB")
    assert re.fullmatch(f"first step: {TIMES}", lines[1])
    assert re.fullmatch(f"a later step: {TIMES}", lines[2])


def test_what_the_device_cannot_do_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*SMALL, "--options", "skip_query", "dependent_launch"])
    assert "dependent_launch: expected a GPU of compute capability 9.0" in capsys.readouterr().err
