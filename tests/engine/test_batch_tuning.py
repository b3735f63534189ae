"""Batch sizes by measurement: which are kept, when the search ends, and the file that keeps them."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import GOLDEN, engine

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine import batches
from hqtvae_fast.engine.batches import Batch, BatchTuning, Cutter, default_file, load, measure, save

FACTS = {"device": "a", "dtype": "bf16"}


def test_sizes_that_gain_nothing_are_not_kept():
    tuning = BatchTuning({1: 1.0, 2: 1.01, 4: 1.02, 8: 1.5, 16: 2.0, 32: 5.0})
    assert tuning.best == 16
    assert tuning.buckets == (4, 8, 16)  # one and two images take as long as four; 32 is slower an image
    assert BatchTuning({1: 1.0, 2: 2.0}).buckets == (1,)  # equal: the smaller


def test_the_cutter_uses_them():
    cutter = Cutter(21, 16, buckets=True, sizes=(4, 8, 16))
    assert [cutter.next(start) for start in (0, 16)] == [Batch(0, 16, 16), Batch(16, 5, 8)]
    with pytest.warns(UserWarning, match="going on with 8"):
        assert cutter.shrink(Batch(0, 16, 16))


class Clock:
    """Time that passes only in what is timed."""

    def __init__(self, monkeypatch, cost):
        self.now, self.cost, self.runs = 0.0, cost, []
        monkeypatch.setattr(batches.time, "perf_counter", lambda: self.now)

    def run(self, size):
        self.runs.append(size)
        self.now += self.cost(size)


def test_the_search_ends_well_past_the_best(monkeypatch):
    clock = Clock(monkeypatch, lambda size: size if size <= 8 else size * 2.0)
    told = []
    found = measure(clock.run, [16, 1, 8, 32, 8], batches=2, on_size=lambda *what: told.append(what))
    assert dict(found.seconds) == {1: 0.5, 8: 4.0, 16: 16.0}
    assert told == list(found.seconds.items())
    assert 32 not in clock.runs


def test_the_search_ends_where_memory_does(monkeypatch):
    def cost(size):
        if size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    assert dict(measure(Clock(monkeypatch, cost).run, [2, 4, 8, 16]).seconds) == {2: 1.0, 4: 1.0}
    with pytest.raises(MemoryError, match="not enough memory for 8 images at once"):
        measure(Clock(monkeypatch, cost).run, [8])


def test_other_errors_are_errors(monkeypatch):
    def cost(size):
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        measure(Clock(monkeypatch, cost).run, [1])


def test_the_file_keeps_one_entry_for_the_same_facts(tmp_path):
    file = tmp_path / "new" / "batches.json"
    assert load(FACTS, file) is None
    save(BatchTuning({1: 2.0}), FACTS, file)
    save(BatchTuning({1: 3.0, 2: 4.0}), {**FACTS, "dtype": "fp32"}, file)
    save(BatchTuning({8: 5.0}), FACTS, file)
    assert load(FACTS, file) == BatchTuning({8: 5.0})
    assert load({**FACTS, "dtype": "fp32"}, file) == BatchTuning({1: 3.0, 2: 4.0})
    assert load({**FACTS, "device": "b"}, file) is None
    assert len(json.loads(file.read_text())) == 2
    assert [path.name for path in file.parent.iterdir()] == ["batches.json"]


NOT_OURS = ["", "[1]", '{"a": 1}', '[{"facts": {"a": 1}, "seconds": {}}]', '[{"seconds": {"1": 1}}]']


@pytest.mark.parametrize("text", NOT_OURS)
def test_a_file_of_something_else_is_refused_and_kept(text, tmp_path):
    file = tmp_path / "batches.json"
    file.write_text(text)
    for attempt in (lambda: load(FACTS, file), lambda: save(BatchTuning({1: 1.0}), FACTS, file)):
        with pytest.raises(ValueError, match=r"batches\.json: expected the times of batch sizes"):
            attempt()
    assert file.read_text() == text


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path))
    assert default_file() == tmp_path / "batches.json"
    monkeypatch.delenv("HQTVAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_file() == tmp_path / "hqtvae_fast" / "batches.json"


# --------------------------------------------------------------------------------------------------------- the pipeline


@pytest.fixture
def opened(monkeypatch, tmp_path):
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path))
    monkeypatch.setattr(batches, "SECONDS", 0.0)

    def open_(case="class_parallel", dtype="fp32", **options):
        return HQTVAEPipeline.from_pretrained(GOLDEN / case, device="cpu", dtype=dtype, **options)

    return open_


def test_a_later_pipeline_finds_what_an_earlier_one_measured(opened):
    pipe = opened()
    assert pipe.best_batch_size == 8  # a CPU's default
    found = pipe.tune_batches([1, 3])
    assert set(found.seconds) <= {1, 3}
    assert pipe.best_batch_size == found.best
    assert opened().best_batch_size == found.best
    other = [opened(dtype="bf16"), opened("class_sequential"), opened(plan=engine("tables"))]
    assert [pipe.best_batch_size for pipe in other] == [8, 8, 8]  # the times are not theirs


@pytest.mark.parametrize("case", ["class_parallel", "text_parallel", "uncond_reduce", "global_bottom"])
def test_every_kind_of_model_can_be_timed(case, opened, tmp_path):
    found = opened(case).tune_batches([2], file=tmp_path / "elsewhere.json")
    assert found.buckets == (2,)
    assert (tmp_path / "elsewhere.json").exists()
    assert not (tmp_path / "batches.json").exists()


def test_tuned_sizes_leave_the_codes_alone(opened):
    pipe = opened(plan=engine("captured"))
    options = {"class_labels": [1, 2, 3], "seed": 5, "output_type": "codes", "progress": False}
    before = pipe(**options).codes
    pipe._sizes.tuning = BatchTuning({1: 1.0, 2: 1.5})
    assert all(torch.equal(a, b) for a, b in zip(pipe(**options).codes, before, strict=True))
    drawn = {report.key[2] for report in pipe._executor.graphs.report() if report.key[0] == "draw"}
    assert drawn == {4, 2, 1}  # three in the bucket of four; then two, and one


def test_determinism_goes_by_a_size_that_no_measurement_changes(opened):
    pipe = opened(plan=engine("captured"))
    pipe._sizes.tuning = BatchTuning({1: 1.0, 2: 1.5})
    pipe(class_labels=1, deterministic="batch", output_type="codes", progress=False)
    assert [report.key[2] for report in pipe._executor.graphs.report()] == [8]


def test_a_broken_file_is_told_of_and_costs_nothing(opened, tmp_path):
    (tmp_path / "batches.json").write_text("not ours")
    with pytest.warns(UserWarning, match=r"batches\.json: expected .*: batch sizes are the default ones"):
        pipe = opened()
    with pytest.raises(ValueError, match=r"batches\.json: expected the times"):
        pipe.tune_batches([1])
    assert (tmp_path / "batches.json").read_text() == "not ours"


def test_a_checkpoint_of_stage_1_has_no_batches(opened):
    with pytest.raises(ValueError, match="stage 1 only"):
        opened("stage1_conv2").tune_batches([1])
