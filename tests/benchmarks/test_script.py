"""A released script timed alone, through compat, and beside the pipeline."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks.measuring import schema
from benchmarks.suites import script as suite
from benchmarks.suites.script import ALONE, KNOWN, time_script

RELEASED = os.environ.get("HQTVAE_RELEASED")


def timed(script, released):
    return time_script(script, released, "tiny", None, torch.device("cpu"), 2, 1, 1, "fp32")


def test_what_cannot_be_timed(tmp_path):
    with pytest.raises(ValueError, match=r"--script: expected sampling_hqmodel\.py; got 'other\.py'"):
        timed("other.py", tmp_path)
    with pytest.raises(ValueError, match=r"expected a checkout with sampling_hqmodel\.py as --released"):
        timed(KNOWN, tmp_path)
    with pytest.raises(ValueError, match="got None"):
        timed(KNOWN, None)


def test_what_was_timed_is_written(tmp_path, monkeypatch):
    (tmp_path / KNOWN).touch()
    times = {ALONE: iter([4.0, 6.0]), "through compat": iter([2.0, 1.0])}
    monkeypatch.setattr(suite, "_entrants", lambda *_: {name: own.__next__ for name, own in times.items()})
    file = tmp_path / "times.json"
    time_script(KNOWN, tmp_path, "tiny", tmp_path, torch.device("cpu"), 2, 1, 2, "fp32", file)
    alone, through = schema.read(file).rows
    assert (alone.entrant, alone.runs, alone.ours) == (ALONE, [4.0, 6.0], False)
    assert (through.entrant, through.median, through.ours) == ("through compat", 1.5, True)


@pytest.mark.released
@pytest.mark.skipif(RELEASED is None, reason="HQTVAE_RELEASED names no checkout of the released implementation")
def test_all_three_in_turns():
    pytest.importorskip("omegaconf", reason="the released scripts need omegaconf")
    seconds = timed(KNOWN, Path(RELEASED))
    assert list(seconds) == ["the script alone", "through compat", "the pipeline"]
    assert all(len(runs) == 1 and runs[0] > 0 for runs in seconds.values())
