"""What is picked where nobody says: the size, the batch, how long, codebooks that the pictures fill, micro-batches."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("accelerate", reason="training needs the train extra")

from hqtvae_fast.config import ConfigError, HQTVAEConfig
from hqtvae_fast.train import memory
from hqtvae_fast.train.config import Stage1Run, Stage2Run, completed, read_run
from hqtvae_fast.train.data import Facts
from hqtvae_fast.train.sizing import sizes
from hqtvae_fast.train.sizing.models import make_vae_config
from hqtvae_fast.train.sizing.sizes import default_size, fitting_batch, pick, pictures_seen

CPU, GPU = torch.device("cpu"), torch.device("cuda")
USER = {"data": "pictures", "out": "run"}


def facts(pictures: int, condition: str = "class") -> Facts:
    return Facts(pictures, condition, "0" * 16, "{caption}")


def picked(cls, pictures: int, device=CPU, condition: str = "class", **fields):
    run = read_run(cls, None, {**USER, **fields})
    found = pick(run, facts(pictures, condition), device)
    return found.size, completed(run, found.fields)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of so many GiB."""

    def of(gib: int) -> None:
        properties = SimpleNamespace(total_memory=gib * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    return of


def test_a_cpu_trains_the_tiny_model_of_sixty_pictures():
    size, run = picked(Stage1Run, 60)
    assert size == "tiny"
    assert run.model["resolution"] == 64
    assert run.batch_size == 16
    assert run.steps == 750
    assert run.model["codebook_sizes"] == [128, 512]  # six vectors a code: 960 top ones, 3,840 bottom ones
    assert run.restart_unused
    assert run.crops < 1
    size, run = picked(Stage2Run, 60)
    assert (size, run.steps, run.batch_size) == ("tiny", 875, 16)


@pytest.mark.parametrize("pictures, gib, size", [(60, 80, "small"), (49_999, 80, "small"), (50_000, 80, "paper"),
                                                 (10**6, 24, "small")])  # fmt: skip
def test_a_gpu_trains_what_fills_it(gpu, pictures, gib, size):
    gpu(gib)
    assert default_size(facts(pictures), GPU) == size


@pytest.mark.parametrize("condition, dim", [("class", 1536), ("text", 1536), ("none", 1024)])
def test_the_papers_size_goes_by_what_the_pictures_have(condition, dim):
    _, run = picked(Stage2Run, 10**6, condition=condition, size="paper")
    assert run.model["dim"] == dim
    assert run.model["condition"] == condition
    assert run.batch_size == 512 or condition != "class"


def test_more_pictures_are_trained_on_longer_and_less_than_so_many_times():
    for stage in ("stage1", "stage2"):
        seen = [pictures_seen(stage, "tiny", count) for count in (10, 60, 600, 6000)]
        assert seen[0] == seen[1] < seen[2] < seen[3]
        assert seen[3] < 100 * seen[1]


@pytest.mark.parametrize("pictures, batch", [(3, 8), (24, 8), (60, 16), (200, 64), (10**6, 128)])
def test_a_batch_is_a_part_of_the_set(pictures, batch):
    assert fitting_batch(128, pictures) == batch


def test_what_somebody_names_stays():
    _, run = picked(Stage1Run, 60, steps=7, batch_size=3, learning_rate=1e-5)
    assert (run.steps, run.batch_size, run.learning_rate) == (7, 3, 1e-5)
    _, run = picked(Stage1Run, 60, epochs=2.0)
    assert (run.steps, run.epochs) == (None, 2.0)


def test_a_model_of_ones_own_is_of_no_size():
    size, run = picked(Stage1Run, 60, model={"resolution": 32})
    assert size == ""
    assert run.model == {"resolution": 32}
    assert run.batch_size == 128
    assert run.steps > 0
    with pytest.raises(ConfigError, match="size: expected none beside"):
        read_run(Stage1Run, None, {**USER, "size": "tiny", "model": {"resolution": 32}})


def test_the_resolution_changes_the_maps():
    _, run = picked(Stage1Run, 60, resolution=128)
    assert make_vae_config(run.model).level_sides == (8, 16)


# ----------------------------------------------------------------------------------------------------------- memory


def begun(batch: int, **changes) -> SimpleNamespace:
    run = read_run(Stage1Run, None, {**USER, "batch_size": batch, "adversarial": 0.0, **changes})
    accelerator = SimpleNamespace(num_processes=1, device=CPU)
    return _Started(run, accelerator)


@dataclasses.dataclass(frozen=True)
class _Started:
    run: Stage1Run
    accelerator: SimpleNamespace
    goes_on: bool = False


@pytest.fixture(scope="module")
def config() -> HQTVAEConfig:
    return HQTVAEConfig(vae=make_vae_config(sizes.load_size("tiny", "stage1")["model"]), transformer=None)


def test_micro_batches_are_as_few_as_memory_allows(config):
    needs = {n: memory.training_bytes(config, "stage1", n, "no", memory.extras(begun(16).run)) for n in (1, 4, 16)}
    for count, parts in ((16, 1), (4, 4), (1, 16)):
        assert memory.in_memory(begun(16), config, free=needs[count] / 0.9 * 1.01).run.accumulate == parts


def test_a_picture_that_does_not_fit_is_said(config):
    with pytest.warns(UserWarning, match="memory: a picture at a time needs about .* GiB"):
        memory.in_memory(begun(16), config, free=1e6)


def test_stage_2_computes_activations_twice_before_it_gives_up():
    config = sizes.size_config("small")
    run = read_run(Stage2Run, None, {**USER, "vae": "vae", "batch_size": 2, "code_cache": "codes"})
    once, twice = (
        memory.training_bytes(config, "stage2", 1, "no", memory.extras(dataclasses.replace(run, **changes)))
        for changes in ({}, {"activation_checkpointing": True})
    )
    assert twice < once
    started = _Started(run, SimpleNamespace(num_processes=1, device=CPU))
    assert not memory.in_memory(started, config, free=once / 0.9 * 1.01).run.activation_checkpointing
    found = memory.in_memory(started, config, free=(once + twice) / 2 / 0.9).run
    assert found.activation_checkpointing
    assert found.accumulate in (1, 2)
    with pytest.warns(UserWarning, match="memory: a picture at a time"):
        memory.in_memory(started, config, free=twice / 2)


def test_what_was_named_or_begun_stays(config):
    assert memory.in_memory(begun(16, accumulate=2), config, free=1e6).run.accumulate == 2
    assert memory.in_memory(dataclasses.replace(begun(16), goes_on=True), config, free=1e6).run.accumulate == 1


def test_free_memory_is_read():
    assert memory.free_bytes(CPU) > 1e6
