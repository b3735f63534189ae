"""Batch sizes by measurement: which are kept, when the search ends, and that a pipeline goes by its plan's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN, engine

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.config import BUCKETS
from hqtvae_fast.engine.batches import Batch, Cutter, best_batch
from hqtvae_fast.plan import Plan
from hqtvae_fast.plan_file import PlanFile, plan_path
from hqtvae_fast.tune import whole
from hqtvae_fast.tune.batches import BatchTuning, measure
from hqtvae_fast.tune.whole import ModelName, Whole

CPU = torch.device("cpu")


def test_sizes_that_gain_nothing_are_not_kept():
    tuning = BatchTuning({1: 1.0, 2: 1.01, 4: 1.02, 8: 1.5, 16: 2.0, 32: 5.0})
    assert tuning.best == 16
    assert tuning.buckets == (4, 8, 16)  # one and two images take as long as four; 32 is slower an image
    assert BatchTuning({1: 1.0, 2: 2.0}).buckets == (1,)  # equal: the smaller


def test_sizes_that_nobody_measured_stay_where_they_may_be_worth_it():
    assert BatchTuning({1: 1.0, 50: 5.0}).among(BUCKETS) == (1, 2, 4, 8, 16, 32, 50)  # two images not as 50 rows
    assert BatchTuning({1: 1.0, 8: 1.0}).among(BUCKETS) == (8,)  # two take no less than one
    assert BatchTuning({1: 0.5, 4: 1.98, 16: 2.0}).among(BUCKETS) == (1, 2, 16)  # eight take no less than four
    assert BatchTuning({4: 1.0, 8: 5.0}).among(BUCKETS) == (1, 2, 4)
    measured = BatchTuning({1: 1.0, 2: 1.01, 4: 1.02, 8: 1.5, 16: 2.0, 32: 5.0})
    assert measured.among((1, 2, 4, 8, 16, 32)) == measured.buckets


def test_the_cutter_uses_them():
    cutter = Cutter(21, 16, buckets=True, sizes=(4, 8, 16))
    assert [cutter.next(start) for start in (0, 16)] == [Batch(0, 16, 16), Batch(16, 5, 8)]
    with pytest.warns(UserWarning, match="going on with 8"):
        assert cutter.shrink(Batch(0, 16, 16))


class Runs:
    """Seconds of a batch by its size."""

    def __init__(self, cost):
        self.cost, self.runs = cost, []

    def run(self, size):
        self.runs.append(size)
        return self.cost(size)


def test_the_search_ends_well_past_the_best():
    runs = Runs(lambda size: size / 2 if size <= 8 else size * 1.0)
    assert dict(measure(runs.run, [16, 1, 8, 32, 8]).seconds) == {1: 0.5, 8: 4.0, 16: 16.0}
    assert 32 not in runs.runs


def test_a_size_takes_the_median_of_its_runs_after_one_that_warms_up():
    times = iter([9.0, 0.3, 0.2, 0.6])
    assert dict(measure(lambda size: next(times), [1]).seconds) == {1: 0.3}


def test_the_search_ends_where_memory_does():
    def cost(size):
        if size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    assert dict(measure(Runs(cost).run, [2, 4, 8, 16]).seconds) == {2: 1.0, 4: 1.0}
    with pytest.raises(MemoryError, match="not enough memory for 8 images at once"):
        measure(Runs(cost).run, [8])


def test_other_errors_are_errors():
    def cost(size):
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        measure(Runs(cost).run, [1])


# ----------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("case", ["class_parallel", "text_parallel", "uncond_reduce", "global_bottom"])
def test_every_kind_of_model_can_be_timed(case):
    model = Whole(ModelName(str(GOLDEN / case), None, "fp32"), CPU)
    found = measure(lambda size: model.seconds(Plan(), size), [2])
    assert found.buckets == (2,)
    assert found.seconds[2] > 0


def test_where_batches_overlap_one_takes_a_third_of_three(monkeypatch):
    model, ticks = Whole(ModelName(str(GOLDEN / "class_parallel"), None, "fp32"), CPU), iter([0.0, 6.0, 10.0, 16.0])
    monkeypatch.setattr(whole.time, "perf_counter", lambda: next(ticks))
    assert model.seconds(engine("overlap=on"), 2) == 2.0
    assert model.seconds(engine("overlap=off"), 2) == 6.0


# --------------------------------------------------------------------------------------------------------- the pipeline


@pytest.fixture
def opened(monkeypatch, tmp_path):
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path))

    def open_(case="class_parallel", dtype="fp32", **options):
        return HQTVAEPipeline.from_pretrained(GOLDEN / case, device="cpu", dtype=dtype, **options)

    return open_


def best_of(pipe):
    return best_batch(pipe.plan, pipe.device)


def test_a_later_pipeline_finds_what_was_measured_before(opened):
    pipe = opened()
    assert best_of(pipe) == 8  # a CPU's default
    facts = pipe.plan_facts()
    PlanFile("tuned", facts, batches=(1, 3), best=3, seconds={1: 1.0, 3: 2.0}).write(plan_path(facts))
    assert best_of(opened()) == 3
    other = [opened(dtype="bf16"), opened("class_sequential"), opened(plan=engine("tables"))]
    assert [best_of(pipe) for pipe in other] == [8, 8, 8]  # the times are not theirs


def test_the_best_size_is_drawn_with_unless_another_is_asked_for(opened):
    pipe = opened(plan=replace(engine("captured"), best=3))
    pipe([1, 2, 3, 4], output_type="codes", progress=False)
    pipe([1, 2], batch_size=2, output_type="codes", progress=False)
    assert {report.key[2] for report in pipe._executor.graphs.report()} == {3, 1, 2}  # no bucket of three: as asked


def test_fewer_images_are_computed_as_a_size_of_the_plan(opened):
    pipe = opened(plan=replace(engine("captured"), batches=(3, 5), best=5))
    pipe([1, 2], progress=False)
    pipe([1, 2, 3, 4], progress=False)
    reports = pipe._executor.graphs.report()
    assert {report.key[2] for report in reports if report.key[0] == "draw"} == {3, 5}
    assert {report.key[1] for report in reports if report.key[0] == "decode"} == {3, 5}


def test_tuned_sizes_leave_the_codes_alone(opened):
    drawn = []
    for plan in (engine("captured"), replace(engine("captured"), batches=(1, 2), best=2)):
        pipe = opened(plan=plan)
        codes = pipe(class_labels=[1, 2, 3], seed=5, output_type="codes", progress=False).codes
        sizes = {report.key[2] for report in pipe._executor.graphs.report() if report.key[0] == "draw"}
        drawn.append((codes, sizes))
    (before, default), (after, tuned) = drawn
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert (default, tuned) == ({4}, {2, 1})  # three in the bucket of four; two, and one


def test_determinism_goes_by_a_size_that_no_measurement_changes(opened):
    pipe = opened(plan=replace(engine("captured"), batches=(1, 2), best=2))
    pipe(class_labels=1, deterministic="batch", output_type="codes", progress=False)
    assert [report.key[2] for report in pipe._executor.graphs.report()] == [8]


def test_decoding_goes_by_them_too(opened):
    pipe = opened(plan=replace(engine("captured"), batches=(1, 2), best=2))
    codes = pipe([1, 2, 3], output_type="codes", progress=False).codes
    assert len(pipe.decode(codes)) == 3
    assert {report.key[1] for report in pipe._executor.graphs.report() if report.key[0] == "decode"} == {2, 1}


def test_a_broken_file_is_told_of_and_costs_nothing(opened):
    facts = opened().plan_facts()
    file = plan_path(facts)
    PlanFile("tuned", facts, batches=(1, 2), best=2).write(file)
    file.write_text(text := file.read_text().replace('"best": 2', '"best": 0'))
    with pytest.warns(UserWarning, match="best: expected a batch size from 1 on, or none; got 0: going by the default"):
        assert best_of(opened()) == 8
    assert file.read_text() == text
