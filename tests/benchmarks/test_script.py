"""A released script timed alone, through compat, and beside the pipeline."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks.suites.script import KNOWN, time_script

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


@pytest.mark.released
@pytest.mark.skipif(RELEASED is None, reason="HQTVAE_RELEASED names no checkout of the released implementation")
def test_all_three_in_turns():
    pytest.importorskip("omegaconf", reason="the released scripts need omegaconf")
    seconds = timed(KNOWN, Path(RELEASED))
    assert list(seconds) == ["the script alone", "through compat", "the pipeline"]
    assert all(len(runs) == 1 and runs[0] > 0 for runs in seconds.values())
