"""The command itself, under torchrun: four processes, one killed and started again, then two that go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import SECONDS, contents, wait_for

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "golden" / "class_parallel"
SET = ("--num-images", "60", "--shard-size", "2", "--batch-size", "2", "--device", "cpu", "--dtype", "fp32")
pytestmark = pytest.mark.slow

needs_proc = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds torchrun's workers in /proc")


def command(folder: Path, processes: int, *options: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *options]
    option = "--out" if processes > 1 else "--shards"  # of several processes the first means the second
    return [sys.executable, *launcher, "-m", "hqtvae_fast.cli", "sample", str(CHECKPOINT), *SET, option, str(folder)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(folder: Path, processes: int) -> str:
    done = subprocess.run(
        command(folder, processes), env=environment(), capture_output=True, text=True, timeout=5 * SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "samples"
    run(folder, 1)
    return folder


def workers(launcher: int) -> list[int]:
    """Process numbers of torchrun's workers."""
    return [int(number) for number in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def shards(folder: Path) -> int:
    return len(list(folder.glob("*.tar")))


def test_four_processes_write_what_one_writes(alone, tmp_path):
    assert "(4 processes)" in run(tmp_path / "samples", 4)
    assert contents(tmp_path / "samples") == contents(alone)


@needs_proc
def test_a_killed_worker_is_started_again(alone, tmp_path):
    folder = tmp_path / "samples"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    launched = subprocess.Popen(command(folder, 4, "--max-restarts=1"), env=environment(), **pipes)
    wait_for(lambda: shards(folder) >= 3)
    os.kill(workers(launched.pid)[2], signal.SIGKILL)
    out, err = launched.communicate(timeout=5 * SECONDS)
    assert launched.returncode == 0, err
    assert "Signal 9 (SIGKILL)" in err or "exitcode: -9" in err, "no worker was killed while the job ran"
    assert "shards are there already" in out, "the job was over before it was started again"
    assert contents(folder) == contents(alone)


def test_a_killed_job_goes_on_with_fewer_processes(alone, tmp_path):
    folder = tmp_path / "samples"
    launched = subprocess.Popen(command(folder, 4), env=environment(), start_new_session=True)
    wait_for(lambda: shards(folder) >= 3)
    os.killpg(launched.pid, signal.SIGKILL)
    launched.wait()
    assert shards(folder) < 30
    assert "are there already" in run(folder, 2)
    assert contents(folder) == contents(alone)
    assert len(json.loads((folder / "manifest.json").read_text())["shards"]) == 30
