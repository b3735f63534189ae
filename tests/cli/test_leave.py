"""How a process ends: whole where it is alone, before its interpreter is taken apart where it is one of several."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit
from hqtvae_fast.cli import leave

class Kept:
    def __del__(self):
        print("taken apart", flush=True)

kept = Kept()  # until the interpreter is finalized
atexit.register(print, "left in order")
leave.main = lambda: 3
leave.run()
"""


@pytest.mark.parametrize("size, told", [("1", ["left in order", "taken apart"]), ("2", ["left in order"])])
def test_one_of_several_is_not_taken_apart(size, told):
    env = {**os.environ, "WORLD_SIZE": size, "RANK": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines() == told


def test_variables_that_fit_no_job_are_said_and_end_as_any_error():
    env = {**os.environ, "WORLD_SIZE": "2", "RANK": "2"}
    command = [sys.executable, "-m", "hqtvae_fast.cli", "no-such-command"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no-such-command" in done.stderr
