"""Batches: how a request is cut, in which order things happen, and what failures leave behind."""

from __future__ import annotations

import threading
import warnings
import weakref
from contextlib import nullcontext

import pytest
import torch

from hqtvae_fast.engine import Batch, Cutter, GenerationError, Job, generate
from hqtvae_fast.engine.streams import Done

CPU = torch.device("cpu")
both_ways = pytest.mark.parametrize("overlap", ["off", "on"])


def cuts(total: int, limit: int, *, fixed: bool = False) -> list[tuple[int, int, int]]:
    cutter, start, found = Cutter(total, limit, fixed=fixed), 0, []
    while start < total:
        batch = cutter.next(start)
        found.append((batch.start, batch.count, batch.size))
        start = batch.stop
    return found


def test_a_request_is_cut_from_the_front():
    assert cuts(7, 3) == [(0, 3, 3), (3, 3, 3), (6, 1, 1)]
    assert cuts(2, 8) == [(0, 2, 2)]


def test_fixed_batches_are_padded():
    assert cuts(7, 3, fixed=True) == [(0, 3, 3), (3, 3, 3), (6, 1, 3)]
    assert cuts(2, 8, fixed=True) == [(0, 2, 8)]


def test_buckets_hold_what_is_left():
    cutter = Cutter(7, 50, buckets=True)
    assert cutter.next(0) == Batch(0, 7, 8)
    assert Cutter(200, 50, buckets=True).next(150) == Batch(150, 50, 50)
    assert Cutter(45, 60, buckets=True).next(0) == Batch(0, 45, 50)
    assert Cutter(55, 60, buckets=True).next(0) == Batch(0, 55, 60)  # no bucket of that size: the limit itself


def draw(batch: Batch, invalid: torch.Tensor, on_step=None) -> tuple[torch.Tensor, ...]:
    """Codes that name the image: its index, and nine in the padding."""
    own = torch.arange(batch.start, batch.stop)
    return (torch.cat([own, torch.full((batch.size - batch.count,), 9)])[:, None, None],)


def decode(codes: tuple[torch.Tensor, ...], count: int) -> torch.Tensor:
    return codes[0][:count, None].float() / 10


def describe(batch: Batch) -> str:
    return f"images {batch.start} to {batch.stop - 1}"


def job(draw=draw, decode=decode) -> Job:
    return Job(lambda batch: (batch,), draw, decode, describe, nullcontext(lambda: None))


@both_ways
@pytest.mark.parametrize("fixed", [False, True])
def test_batches_come_in_order_without_their_padding(fixed, overlap):
    finished = list(generate(job(), Cutter(7, 3, fixed=fixed), CPU, overlap=overlap))
    assert [batch.codes[0].flatten().tolist() for batch in finished] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(torch.cat([batch.images for batch in finished]).flatten(), torch.arange(7) / 10)


def test_codes_alone():
    assert [batch.images for batch in generate(job(decode=None), Cutter(4, 3), CPU)] == [None, None]


def test_nothing_is_done_that_is_not_asked_for():
    """A consumer that stops ends the drawing; no thread is left."""
    drawn, threads = [], threading.active_count()

    def counted(batch, invalid, on_step):
        drawn.append(batch.start)
        return draw(batch, invalid)

    stream = generate(job(counted), Cutter(100, 2), CPU)
    assert drawn == []
    next(stream)
    stream.close()
    assert drawn == [0]
    with pytest.raises(StopIteration):
        next(stream)
    assert threading.active_count() == threads


def test_on_a_cpu_the_next_batch_is_drawn_while_one_is_decoded():
    """Each waits for the other to have begun: one after the other they would wait for ever."""
    drawing, decoding, seen = threading.Event(), threading.Event(), []

    def second_draws(batch, invalid, on_step):
        if batch.start == 2:
            seen.append(decoding.wait(20))
            drawing.set()
        return draw(batch, invalid)

    def first_decodes(codes, count):
        if int(codes[0][0]) == 0:
            decoding.set()
            seen.append(drawing.wait(20))
        return decode(codes, count)

    finished = list(generate(job(second_draws, first_decodes), Cutter(6, 2), CPU, overlap="on"))
    assert seen == [True, True]
    assert torch.cat([batch.codes[0] for batch in finished]).flatten().tolist() == list(range(6))


@pytest.mark.parametrize("ahead,starts", [(None, [0, 2]), (2, [0, 2, 4])])
def test_one_batch_is_drawn_ahead_or_as_many_as_asked_and_no_thread_stays(ahead, starts):
    drawn, threads = [], threading.active_count()

    def counted(batch, invalid, on_step):
        drawn.append(batch.start)
        return draw(batch, invalid)

    stream = generate(job(counted), Cutter(100, 2), CPU, overlap="on", ahead=ahead)
    next(stream)
    assert threading.active_count() == threads + 1
    stream.close()
    assert drawn == starts
    assert threading.active_count() == threads


def test_a_decoding_thread_that_fails_names_its_batch_and_stays_nowhere():
    threads = threading.active_count()

    def broken(codes, count):
        if int(codes[0][0]) == 2:
            raise RuntimeError("no such convolution")
        return decode(codes, count)

    with pytest.raises(GenerationError, match="images 2 to 3: no such convolution"):
        list(generate(job(decode=broken), Cutter(10, 2), CPU, overlap="on"))
    assert threading.active_count() == threads


@both_ways
def test_a_consumer_that_fails_ends_the_drawing(overlap):
    drawn = []

    def counted(batch, invalid, on_step):
        drawn.append(batch.start)
        return draw(batch, invalid)

    def consume():
        for batch in generate(job(counted), Cutter(100, 2), CPU, overlap=overlap):
            if batch.batch.start == 4:
                raise KeyError("the consumer's own")

    with pytest.raises(KeyError, match="the consumer's own"):
        consume()
    assert drawn == ([0, 2, 4, 6] if overlap == "on" else [0, 2, 4])


def fails_above(limit: int, error: Exception, drawn: list[int]):
    def limited(batch, invalid, on_step):
        if batch.size > limit:
            raise error
        drawn.append(batch.size)
        return draw(batch, invalid)

    return limited


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_less_memory_makes_smaller_batches_and_says_so(error):
    drawn: list[int] = []
    with pytest.warns(UserWarning, match="not enough memory for .* at once") as caught:
        finished = list(generate(job(fails_above(2, error, drawn)), Cutter(7, 8), CPU))
    assert drawn == [2, 2, 2, 1]
    assert torch.cat([batch.codes[0] for batch in finished]).flatten().tolist() == list(range(7))
    messages = [str(warning.message) for warning in caught]
    assert messages[0] == "not enough memory for 7 images at once: going on with 4"
    assert len(messages) == 2  # once a size, not once a batch


@both_ways
def test_decoding_may_run_out_of_memory_too(overlap):
    def limited(codes, count):
        if len(codes[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(codes, count)

    with pytest.warns(UserWarning, match="going on with 1"):
        finished = list(generate(job(decode=limited), Cutter(3, 2), CPU, overlap=overlap))
    assert torch.cat([batch.images for batch in finished]).flatten().tolist() == pytest.approx([0, 0.1, 0.2])


def test_what_a_failed_batch_held_is_gone_before_memory_is_given_back(monkeypatch):
    """Python keeps what the failed functions held as long as their error: torch could not give that back."""
    held, alive = [], []

    def limited(batch, invalid, on_step):
        if batch.size > 2:
            large = torch.zeros(3)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(batch, invalid)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.extend(reference() for reference in held))
    with pytest.warns(UserWarning, match="going on with 2"):
        assert len(list(generate(job(limited), Cutter(4, 4), CPU))) == 2
    assert alive == [None]


def test_one_image_that_does_not_fit_is_an_error():
    with pytest.raises(MemoryError, match="images 0 to 0: not enough memory for 1 at once"):
        list(generate(job(fails_above(0, MemoryError(), [])), Cutter(1, 8), CPU))


def test_fixed_batches_do_not_shrink():
    """Another size would give other bits, which was not asked for."""
    with pytest.raises(MemoryError, match="not enough memory for 8 at once"):
        list(generate(job(fails_above(4, MemoryError(), [])), Cutter(3, 8, fixed=True), CPU))


def test_a_failing_device_names_the_batch():
    def broken(batch, invalid, on_step):
        if batch.start == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")
        return draw(batch, invalid)

    with pytest.raises(GenerationError, match=r"^images 2 to 3: CUDA error: an illegal memory access was encountered$"):
        list(generate(job(broken), Cutter(6, 2), CPU))


class Late:
    """Two batches are under way at once, and the device has failed in one of them."""

    ahead, late = 1, True

    def __init__(self, fails_at):
        self.fails_at, self.calls = fails_at, []

    def drawing(self):
        return nullcontext()

    def decoding(self, drawn, decode):
        start = int(drawn.codes[0][0])
        self._call(f"issue {start}")
        return lambda: self._call(f"wait {start}")

    def _call(self, what):
        self.calls.append(what)
        if what == self.fails_at:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return Done((torch.zeros(2, 1, 1),), None, False)

    def drain(self):
        pass

    def close(self):
        self.calls.append("close")


@pytest.mark.parametrize(
    "fails_at,named",
    [
        ("issue 0", "images 0 to 1: CUDA"),
        ("issue 2", "images 0 to 1 or images 2 to 3: CUDA"),
        ("wait 0", "images 0 to 1 or images 2 to 3: CUDA"),
        ("wait 4", "images 4 to 5: CUDA"),
    ],
)
def test_a_device_that_tells_late_names_all_batches_under_way(fails_at, named, monkeypatch):
    streams = Late(fails_at)
    monkeypatch.setattr("hqtvae_fast.engine.executor.make_streams", lambda *_: streams)
    with pytest.raises(GenerationError, match=f"^{named}"):
        list(generate(job(), Cutter(6, 2), CPU))
    assert streams.calls[-1] == "close"


def test_bad_values_stay_value_errors():
    def broken(batch, invalid, on_step):
        raise ValueError("the model gave NaN logits")

    with pytest.raises(ValueError, match="images 0 to 1: the model gave NaN logits"):
        list(generate(job(broken), Cutter(2, 2), CPU))


def test_nan_logits_are_found_when_the_batch_is_done():
    """On a GPU they are only known then; nothing waits for that before the decode is issued."""
    decoded = []

    def wrong(batch, invalid, on_step):
        invalid |= batch.start == 2
        return draw(batch, invalid)

    def counted(codes, count):
        decoded.append(int(codes[0][0]))
        return decode(codes, count)

    stream = generate(job(wrong, counted), Cutter(6, 2), CPU)
    next(stream)
    with pytest.raises(ValueError, match="images 2 to 3: the model gave NaN logits"):
        next(stream)
    assert decoded == [0, 2]


def test_enough_memory_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(generate(job(), Cutter(6, 2), CPU))) == 3


# ---------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
def test_a_batch_is_drawn_ahead_on_a_gpu():
    device = torch.device("cuda")
    issued = []

    def ahead(batch, invalid, on_step):
        issued.append(batch.start)
        torch.cuda._sleep(10_000_000)
        return tuple(level.to(device) for level in draw(batch, invalid))

    stream = generate(job(ahead), Cutter(6, 2), device)
    first = next(stream)
    assert issued == [0, 2]
    assert first.codes[0].flatten().tolist() == [0, 1]
    rest = list(stream)
    assert torch.cat([batch.images for batch in rest]).flatten().tolist() == pytest.approx([0.2, 0.3, 0.4, 0.5])


@pytest.mark.gpu
def test_both_orders_give_the_same_on_a_gpu():
    device = torch.device("cuda")
    weight = torch.randn(512, 512, device=device)

    def drawn(batch, invalid, on_step):
        value = torch.full((batch.size, 512), float(batch.start), device=device)
        for _ in range(50):
            value = (value @ weight).clamp(-1, 1)
        return ((value[:, :1, None] * 100).long(),)

    results = [
        torch.cat([batch.codes[0] for batch in generate(job(drawn), Cutter(40, 8), device, overlap=overlap)])
        for overlap in ("off", "on")
    ]
    assert torch.equal(*results)
