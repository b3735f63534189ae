"""Idle time from a profile's spans."""

from __future__ import annotations

import pytest
import torch
from conftest import engine

from benchmarks.entrants.ours import open_model
from benchmarks.studies import idle
from hqtvae_fast import HQTVAEPipeline


@pytest.mark.parametrize(
    "spans,share",
    [
        ([(0, 1), (1, 2)], 0.0),
        ([(3, 4), (0, 1)], 0.5),
        ([(0, 10), (2, 3), (9, 12), (15, 20)], 0.15),  # two streams: the longer one covers the shorter one's gaps
        ([(5, 5)], 0.0),
    ],
)
def test_what_no_span_covers(spans, share):
    assert idle.idle_share(spans) == pytest.approx(share)


def test_an_empty_profile_is_no_zero():
    with pytest.raises(ValueError, match="expected kernels in the profile; got none"):
        idle.idle_share([])


def test_what_is_measured(monkeypatch):
    """On a CPU with made-up spans: each work is run once untimed and once for the profile."""
    pipe = HQTVAEPipeline(open_model("tiny", None), device="cpu", dtype="fp32", plan=engine("captured"))
    runs = []
    monkeypatch.setattr(idle, "profiled", lambda work: runs.append(work()) or [(0, 1), (1.5, 2)])
    assert idle.measure(pipe, 2) == {"drawing": 0.25, "decoding": 0.25, "stream": 0.25}
    codes, images, stream = runs
    assert [level.shape for level in codes[0]] == [(2, 4, 4), (2, 8, 8)]
    assert images[0].dtype == torch.uint8
    assert [len(codes), len(images), len(stream)] == [3, 3, 6]


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="expected an NVIDIA GPU"):
        idle.main(["--preset", "tiny"])


@pytest.mark.gpu
def test_one_replay_leaves_less_than_two_percent_idle_on_a_gpu():
    pipe = HQTVAEPipeline(open_model("S", None), device="cuda")
    shares = idle.measure(pipe, 50)
    assert shares["drawing"] < 0.02
    assert shares["decoding"] < 0.02
