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
    assert idle.idle_share([(*span, "") for span in spans]) == pytest.approx(share)


def test_an_empty_profile_is_no_zero():
    with pytest.raises(ValueError, match="expected kernels in the profile; got none"):
        idle.idle_share([])


def test_what_is_measured(monkeypatch):
    """On a CPU with made-up spans: each work is run once untimed and once for the profile."""
    pipe = HQTVAEPipeline(open_model("tiny", None), device="cpu", dtype="fp32", plan=engine("captured"))
    runs = []
    monkeypatch.setattr(idle, "profiled", lambda work: runs.append(work()) or [(0, 1, "a"), (1.5, 2, "b")])
    found = idle.measure(pipe, 2)
    assert {name: idle.idle_share(spans) for name, spans in found.items()} == dict.fromkeys(
        ("drawing", "decoding", "stream"), 0.25
    )
    codes, images, stream = runs
    assert [level.shape for level in codes[0]] == [(2, 4, 4), (2, 8, 8)]
    assert images[0].dtype == torch.uint8
    assert [len(codes), len(images), len(stream)] == [3, 3, 6]


def test_the_kernels_that_take_the_most_time_come_first():
    spans = [(0, 1, "short"), (1, 7, "long"), (7, 9, "short"), (9, 10, "last")]
    assert idle.kernel_lines(spans, 2) == [" 60.0%      1 x      6.0 us  long", " 30.0%      2 x      1.5 us  short"]
    assert idle.kernel_lines(spans, 0) == []


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="expected an NVIDIA GPU"):
        idle.main(["--preset", "tiny"])


@pytest.mark.gpu
def test_kernels_take_most_of_a_replay_on_a_gpu():
    pipe = HQTVAEPipeline(open_model("S", None), device="cuda")
    found = idle.measure(pipe, 50)
    assert idle.idle_share(found["drawing"]) < 0.15
    assert idle.idle_share(found["decoding"]) < 0.15
