"""Which process of a job this one is: all commands read it alike, and training agrees with the launcher or refuses."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from hqtvae_fast.cli import main
from hqtvae_fast.distributed import join_team
from hqtvae_fast.world import World, WorldError, world

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "golden" / "class_parallel"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SECONDS = 60


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def launched(rank: int, size: int) -> dict[str, str]:
    """What torchrun sets, but for the address."""
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}


@pytest.mark.parametrize(
    "variables, expected",
    [({}, World()), ({"WORLD_SIZE": ""}, World()), ({"WORLD_SIZE": " "}, World()), ({"WORLD_SIZE": "1"}, World()),
     ({"RANK": "3", "LOCAL_RANK": "x"}, World()), (launched(2, 4), World(2, 4, 2, 4)),
     ({"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}, World(9, 16, 1, 8)),
     ({"WORLD_SIZE": "2", "RANK": "1"}, World(1, 2, 0, 1))],
)  # fmt: skip
def test_F3_the_place_of_a_process(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert world() == expected


@pytest.mark.parametrize(
    "variables, message",
    [({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected 1 or more, .* got 'two'"), ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
     ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"), ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE"),
     ({"WORLD_SIZE": "2"}, "RANK: expected 0 to 1, .* got ''"), ({**launched(0, 2), "RANK": "2"}, "RANK: .* got '2'"),
     ({**launched(0, 2), "LOCAL_RANK": "a"}, "LOCAL_RANK"), ({**launched(0, 2), "LOCAL_WORLD_SIZE": "3"}, "LOCAL_W")],
)  # fmt: skip
def test_G11_variables_that_fit_no_job(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorldError, match=message):
        world()
    with pytest.raises(WorldError, match=message), join_team():
        pass


@pytest.mark.parametrize("command", ["evaluate", "sample", "train"])
def test_G11_every_command_names_the_variable(monkeypatch, tmp_path, capsys, command):
    pytest.importorskip("accelerate", reason="training needs the train extra")
    from tests.train.small_runs import write_pictures

    monkeypatch.setenv("WORLD_SIZE", "two")
    folder = tmp_path / "out"
    arguments = {
        "evaluate": ["--reference", "none", "--samples", "none"],
        "sample": [CHECKPOINT, "--classes", "1", "--shards", folder],
        "train": ["stage1", "--data", write_pictures(tmp_path / "set"), "--out", folder, "--steps", "1"],
    }
    assert main([command, *map(str, arguments[command])]) == 2
    assert "WORLD_SIZE: expected 1 or more" in capsys.readouterr().err


def test_G11_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    with join_team() as alone:
        assert (alone.rank, alone.world, alone.leads) == (0, 1, True)


def _joins(rank: int, size: int, port: int, folder: Path) -> None:
    from accelerate.state import PartialState

    from hqtvae_fast.train.start import join_world

    PartialState._reset_state()
    torch.set_num_threads(1)
    os.environ |= {**launched(rank, size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    accelerator = join_world("no", folder)
    mean = accelerator.reduce(torch.tensor([float(rank)], dtype=torch.float32), reduction="mean")
    found = {"rank": accelerator.process_index, "world": accelerator.num_processes, "mean": float(mean)}
    (folder / f"{rank}.json").write_text(json.dumps({**found, "leads": accelerator.is_main_process}))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what torch does where it sees no GPU")
def test_F3_processes_without_a_gpu_train_together(tmp_path):
    pytest.importorskip("accelerate", reason="training needs the train extra")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    members = [context.Process(target=_joins, args=(rank, 2, port, tmp_path)) for rank in range(2)]
    for member in members:
        member.start()
    for member in members:
        member.join(SECONDS)
    assert [member.exitcode for member in members] == [0, 0]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found == [{"rank": rank, "world": 2, "mean": 0.5, "leads": rank == 0} for rank in range(2)]


def test_F3_training_refuses_a_world_that_accelerate_does_not_see(monkeypatch, tmp_path):
    pytest.importorskip("accelerate", reason="training needs the train extra")
    from hqtvae_fast.train import start

    class Alone:
        process_index, num_processes, device = 0, 1, "cpu"

        def __init__(self, **_: object) -> None:
            pass

    monkeypatch.setattr(start, "Accelerator", Alone)
    for name, value in launched(1, 2).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorldError, match=r"WORLD_SIZE: expected process 1 of 2, .*; accelerate found 0 of 1"):
        start.join_world("no", tmp_path)


def torchrun(folder: Path) -> str:
    """Train in ``folder/run`` with two processes of torchrun; what they wrote to stdout and stderr."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "hqtvae_fast.cli", "train", "stage1", str(folder / "run.yaml")]
    env = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=5 * SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="what torch does where it sees no GPU")
def test_F3_F10_torchrun_train_is_one_run(tmp_path):
    """Two processes, one run: a line a step in its log, one model. Both go on from the checkpoint that is whole."""
    pytest.importorskip("accelerate", reason="training needs the train extra")
    from tests.train.small_runs import COMMON, VAE, losses, write_pictures

    pictures = write_pictures(tmp_path / "pictures")
    fields = {**COMMON, "data": str(pictures), "out": str(tmp_path / "run"), "model": VAE, "steps": 4}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**fields, "adversarial": 0.0}))
    said = torchrun(tmp_path)
    whole = losses(tmp_path / "run")
    assert [row["step"] for row in whole] == [1, 2, 3, 4]
    assert said.count("batches of 4, 4 updates (") == 1
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    newest = tmp_path / "run" / "checkpoints" / "step-0000004"
    own = newest / "random_states_1.pkl"  # of the second process
    own.write_bytes(own.read_bytes()[:-1])
    said = torchrun(tmp_path)
    assert said.count(f"going on from {newest.with_name('step-0000002')}, update 2") == 1
    assert said.count("random_states_1.pkl: expected ") == 1
    assert losses(tmp_path / "run") == whole
