"""Shared by all tests: where the golden cases are, and single-precision pipelines of them, opened once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.plan import Plan

# The golden models are tiny: a second thread costs more in waiting than it gives, above all on a busy machine.
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/golden.safetensors"))


# Files of 20 s of CPU and more, the longest first: one that is begun last would leave the other process idle.
LONGEST = (
    *("test_commands.py", "test_aot.py", "test_gate.py", "test_runs.py", "test_first_training.py"),
    *("test_two_processes.py", "test_interpreted_group_norm_silu.py", "test_interpreted_nearest_code.py"),
    *("test_interpreted_soft_label_cross_entropy.py", "test_interpreted_step_kernels.py"),
    *("test_release.py", "test_torchrun.py", "test_interpreted_large.py", "test_presets.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist would begin with the files of the most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch sees none")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was tuned on this machine is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HQTVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def engine(text: str) -> Plan:
    """The default plan, with the engine run so."""
    return Plan().with_engine(text)


@functools.cache
def golden_pipeline(case: str) -> HQTVAEPipeline:
    return HQTVAEPipeline.from_pretrained(GOLDEN / case, device="cpu", dtype=torch.float32)


@functools.cache
def golden_values(name: str) -> dict[str, torch.Tensor]:
    """Inputs and the released implementation's outputs; integers as int64."""
    file = GOLDEN / name / "golden.safetensors" if name != "functions" else GOLDEN / "functions.safetensors"
    values = load_file(file)
    return {key: value.long() if value.dtype == torch.int32 else value for key, value in values.items()}


@pytest.fixture(autouse=True, scope="session")
def _no_times_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Batch sizes that somebody measured here are not the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HQTVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def class_pipeline() -> HQTVAEPipeline:
    return golden_pipeline("class_parallel")
