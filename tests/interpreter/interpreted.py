"""Runs a test file's own checks in one process with Triton's interpreter in place of a GPU.

A process of its own, since TRITON_INTERPRET is read when a kernel is defined and other tests are not to meet it; one
for all checks of a file, since starting one costs more than most checks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_file(file: str, *names: str) -> dict[str, str]:
    """Run ``file`` as a program that calls :func:`main` with these names: what failed, or "", by name."""
    environment = {key: value for key, value in os.environ.items() if key != "HQTVAE_BACKEND"}
    environment |= {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(file).parent)))}
    command = [sys.executable, file, *names]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def main(checks: Mapping[str, Callable[[], None]]) -> None:
    """Run each of the checks that the command line names, and print what became of it."""
    import torch

    torch.set_num_threads(1)
    outcomes = {}
    for name in sys.argv[1:]:
        try:
            checks[name]()
            outcomes[name] = ""
        except Exception:
            outcomes[name] = traceback.format_exc()
    print(json.dumps(outcomes))
