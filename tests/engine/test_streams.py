"""The two streams of a GPU, over a stand-in for them: what waits for what, and what a caller is given."""

from __future__ import annotations

from contextlib import closing, contextmanager

import pytest
import torch

from hqtvae_fast.engine import streams
from hqtvae_fast.engine.streams import Drawn, GPUStreams, make_streams

CPU = torch.device("cpu")


class FakeStream:
    def __init__(self, log, name):
        self.log, self.name, self.broken = log, name, False

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        self.log.append(f"event on {self.name}")
        return self

    def synchronize(self):
        self.log.append(f"the host waits for {self.name}")
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


class Fakes:
    def __init__(self, patch):
        self.log, names = [], iter(("drawing", "decoding"))
        self.current = FakeStream(self.log, "caller's")
        self.locked = []
        self.priorities = []

        def stream(device=None, priority=0):
            self.priorities.append(priority)
            return FakeStream(self.log, next(names))

        patch.setattr(torch.cuda, "Stream", stream)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        patch.setattr(torch.cuda, "stream", self.on)
        patch.setattr(streams, "_to_host", self.to_host)

    @contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def to_host(self, value):
        self.log.append(f"copy on {self.current.name}")
        self.locked.append(value.clone())
        return self.locked[-1]


@pytest.fixture
def fakes(monkeypatch):
    return Fakes(monkeypatch)


def issue(fakes, own, count, size):
    """A batch of ``count`` images among ``size`` rows, as the executor issues it."""

    def decode(codes, count):
        fakes.log.append(f"decode on {fakes.current.name}")
        return codes[0][:count] / 2

    with own.drawing():
        fakes.log.append(f"draw on {fakes.current.name}")
        codes = (torch.arange(size)[:, None, None],)
    return own.decoding(Drawn(codes, torch.tensor(False), count), decode)


@pytest.mark.parametrize("overlap", ["on", "priority", "off"])
def test_a_batch_is_decoded_after_it_is_drawn(fakes, overlap):
    own = GPUStreams(CPU, overlap)
    fakes.log.clear()
    assert fakes.priorities == {"on": [0, 0], "priority": [-1, 0], "off": []}[overlap]
    wait = issue(fakes, own, 2, 3)
    first, second = ("drawing", "decoding") if overlap != "off" else ("caller's", "caller's")
    between = ["decoding waits for drawing"] if overlap != "off" else []
    copies = [f"copy on {second}"] * 3
    assert fakes.log == [f"draw on {first}", *between, f"decode on {second}", *copies, f"event on {second}"]
    done = wait()
    assert fakes.log[-1] == f"the host waits for {second}"
    assert done.codes[0].flatten().tolist() == [0, 1]
    assert done.images.flatten().tolist() == [0, 0.5]
    assert not done.invalid


def test_weights_on_their_way_are_waited_for(fakes):
    GPUStreams(CPU, "on")
    assert fakes.log == ["drawing waits for caller's", "decoding waits for caller's"]


def test_what_a_caller_keeps_is_no_page_locked_memory(fakes):
    done = issue(fakes, GPUStreams(CPU, "on"), 2, 2)()
    locked = {value.data_ptr() for value in fakes.locked}
    assert not locked & {done.codes[0].data_ptr(), done.images.data_ptr()}


def test_a_failed_device_does_not_hide_which_batch_it_failed_in(fakes):
    """Leaving, the streams are waited for once more, where a failed device raises again; the first error counts."""
    own = GPUStreams(CPU, "on")
    own._decoding.broken = True
    own.close()
    assert fakes.log[-1] == "the host waits for decoding"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        own.drain()


@pytest.mark.parametrize("overlap,ahead,wanted", [("on", None, 1), ("on", 3, 3), ("off", 3, 0), (None, 3, 0)])
def test_batches_are_issued_as_far_ahead_as_asked(overlap, ahead, wanted, fakes):
    with closing(make_streams(CPU, overlap, ahead)) as own:
        assert own.ahead == wanted
    if overlap is not None:
        assert GPUStreams(CPU, overlap, ahead or 1).ahead == wanted
