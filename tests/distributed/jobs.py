"""Sampling jobs of several processes, forked from the tests' own: new interpreters would take seconds to start."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from conftest import golden_pipeline

from hqtvae_fast.cli.sample_set import draw_together
from hqtvae_fast.distributed import SampleShards, SampleSpec, Subjects, join_team

SECONDS = 60  # no job here should take nearly as long
SPEC = SampleSpec(Subjects((0, 3, 7), 22, in_turn=True), seed=5, top_k=40, batch_size=4, shard_size=4)


def shards_in(folder: Path, spec: SampleSpec = SPEC) -> SampleShards:
    return SampleShards(folder, golden_pipeline("class_parallel"), spec)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def start(folder: Path, world: int, spec: SampleSpec = SPEC) -> list[multiprocessing.Process]:
    """Processes with the environment that torchrun would give them."""
    golden_pipeline("class_parallel")  # opened once, before the fork
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_work, args=(folder, spec, rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def _work(folder: Path, spec: SampleSpec, rank: int, world: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with join_team() as team:
        draw_together(team, shards_in(folder, spec))


def finish(processes: list[multiprocessing.Process]) -> list[int | None]:
    """Exit codes; what still runs after SECONDS is ended."""
    for process in processes:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
