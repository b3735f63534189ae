"""``hqtvae evaluate`` by several processes: each measures a part, and the leader says the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from hqtvae_fast.cli import main

from .conftest import make_pixels, write_folder

NETWORK = f"{__package__}.conftest:pooled"
CHECKPOINT = Path(__file__).parents[1] / "golden" / "class_parallel"
SECONDS = 60


def evaluated(folder: Path, *arguments: str | Path) -> int:
    torch.set_num_threads(1)
    found = ["evaluate", *map(str, arguments), "--features", NETWORK, "--batch-size", "4", "--device", "cpu"]
    return main([*found, "--out", str(folder / "figures.json")])


def by_team(folder: Path, world: int, *arguments: str | Path) -> list[int | None]:
    """Exit codes of processes with the environment that torchrun would give them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    work = [context.Process(target=_member, args=(folder, rank, world, port, arguments)) for rank in range(world)]
    for process in work:
        process.start()
    for process in work:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in work]


def _member(folder: Path, rank: int, world: int, port: int, arguments: tuple[str | Path, ...]) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), **where}
    raise SystemExit(evaluated(folder, *arguments))


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    np.savez(tmp_path / "reference.npz", make_pixels(21))
    return tmp_path / "reference.npz", write_folder(tmp_path / "samples", make_pixels(17, seed=1))


def figures(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "figures.json").read_text())["metrics"]
    (folder / "figures.json").unlink()
    return {name: metric["value"] for name, metric in found.items()}


@pytest.mark.parametrize("world", [2, 3])
def test_samples(world, sets, tmp_path):
    arguments = ("--reference", sets[0], "--samples", sets[1])
    assert evaluated(tmp_path, *arguments) == 0
    alone = figures(tmp_path)
    assert by_team(tmp_path, world, *arguments) == [0] * world
    assert figures(tmp_path) == pytest.approx(alone, rel=1e-9)
    assert set(alone) == {"frechet", "kernel", "precision", "recall"}


def test_reconstructions_of_fewer_pictures_than_processes(tmp_path):
    pictures = write_folder(tmp_path / "two", make_pixels(2, side=64))
    arguments = ("--reference", pictures, "--reconstruct", CHECKPOINT, "--dtype", "fp32")
    assert evaluated(tmp_path, *arguments) == 0
    alone = figures(tmp_path)
    assert by_team(tmp_path, 3, *arguments) == [0] * 3
    assert figures(tmp_path) == pytest.approx(alone, rel=1e-4)  # pixels of another batch may round otherwise


def test_a_process_that_fails_fails_all(sets, tmp_path):
    """A picture that is none, in the second process's part."""
    (sorted(sets[1].iterdir())[-1]).write_bytes(b"no picture")
    assert by_team(tmp_path, 2, "--reference", sets[0], "--samples", sets[1]) == [2, 2]
    assert not (tmp_path / "figures.json").exists()
