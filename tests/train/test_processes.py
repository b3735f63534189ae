"""Several processes in one script: the group of a run ends with its process, a team's with the team."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import write_pictures

ROOT = Path(__file__).parents[2]
THREADS = """
import time
from contextlib import suppress
from pathlib import Path

def gloo():
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it ended meanwhile
            names.append((task / "comm").read_text())
    return [name for name in names if "gloo" in name]

def left(seconds=10):  # a thread that was joined is listed until the kernel has put it away
    end = time.monotonic() + seconds
    while gloo() and time.monotonic() < end:
        time.sleep(0.01)
    return gloo()
"""
TEAM = """
from hqtvae_fast.distributed import join_team

for word in ("one", "two"):
    with join_team() as team:
        assert team.share(lambda: word) == word
        assert gloo()
        team.finish()
    assert not left()
"""
KEPT = """
import torch.distributed as dist

with join_team() as team:
    kept = dist.group.WORLD
    team.finish()
assert left(seconds=0.5)
print("seen")
"""
STAGES = """
import sys
import torch
sys.path.insert(0, "tests/train")
from small_runs import stage1, stage2
from hqtvae_fast.distributed import join_team
from hqtvae_fast.train.run import train_stage1, train_stage2

pictures, out = sys.argv[1:]
for _ in range(2):
    vae = train_stage1(stage1(pictures, out + "/vae", steps=1, adversarial=0.0))
    model = train_stage2(stage2(pictures, vae, out + "/hqt", steps=1))
    with join_team() as team:
        assert team.gather(lambda: str(model)) == [out + "/hqt/model"] * 2
assert torch.distributed.is_initialized()
sys.argv[1:] = ["--version"]
from hqtvae_fast.cli.leave import run
run()
"""


def torchrun(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launch, sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in /proc")
def test_a_team_leaves_no_thread_and_may_be_followed_by_another():
    """And one that stays would be seen."""
    done = torchrun(THREADS + TEAM + KEPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("seen\n") == 2


@pytest.mark.slow
def test_a_script_trains_one_stage_after_the_other_and_then_works_as_a_team(tmp_path):
    done = torchrun(STAGES, str(write_pictures(tmp_path / "pictures")), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished: ") == 4
